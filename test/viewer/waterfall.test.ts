import { waterfall } from '@throughline/viewer'
import type { Span } from '@throughline/viewer'
import { describe, expect, it, vi } from 'vitest'
import { width as columnsOf } from '../../packages/viewer/src/text.ts'
import { at, checkout, declined, hex, link, span, traceId } from './sample.ts'

/** The text with a newline before it, so that the expectation below reads as it prints. */
function printed(spans: readonly Span[], options?: { width?: number; color?: boolean }): string {
  return `\n${waterfall(spans, options)}\n`
}

function lines(text: string): string[] {
  return text.split('\n')
}

/** The ANSI sequences that colours are made of. */
const colors = new RegExp(`${String.fromCodePoint(27)}\\[[0-9;]*m`, 'g')

describe('a checkout', () => {
  it('is one picture in which the slow payment provider stands out', () => {
    expect(printed(checkout(), { width: 100 })).toMatchInlineSnapshot(`
      "
      trace 4bf92f3577b34da6a3ce929d0e0e4736 · 310ms · 10 spans · 4 services · no errors

                                               0            100ms       200ms    310ms
                                               ┌────────────┬───────────┬────────────┐
      [api-gateway] POST /checkout             ┣─────────────────────────────────────┫    0–310ms  310ms
        → POST order-service                    ┣────────────────────────────────────┫    8–307ms  299ms
          [order-service] POST /orders          ┣────────────────────────────────────┫   12–305ms  293ms
            → POST payment-svc                  ┣───────────────────────────────────┫    14–301ms  287ms
              [payment-svc] POST /charge        ┣━──────────────────────────────────┫    15–300ms  285ms
                [stripe-api] POST                ┣━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┫    20–295ms  275ms ◄
            → GET inventory-svc                 ├─────┤                                   14–62ms   48ms
              [inventory-svc] GET /stock/:sku   ├─────┤                                   15–60ms   45ms
                redis: HGET                      ├┤                                       20–24ms    4ms
            db: INSERT orders                                                       ┣┫  301–305ms    4ms

      slowest: [stripe-api] POST 275ms (89 %)
      "
    `)
  })

  it('fits eighty columns', () => {
    expect(printed(checkout(), { width: 80 })).toMatchInlineSnapshot(`
      "
      trace 4bf92f3577b34da6a3ce929d0e0e4736 · 310ms · 10 spans · 4 services
      no errors

                                               0                  200ms 310ms
                                               ┌──────────────────┬─────────┐
      [api-gateway] POST /checkout             ┣────────────────────────────┫  310ms
        → POST order-service                   ┣────────────────────────────┫  299ms
          [order-service] POST /orders          ┣───────────────────────────┫  293ms
            → POST payment-svc                  ┣───────────────────────────┫  287ms
              [payment-svc] POST /charge        ┣───────────────────────────┫  285ms
                [stripe-api] POST               ┣━━━━━━━━━━━━━━━━━━━━━━━━━━┫   275ms ◄
            → GET inventory-svc                 ├───┤                           48ms
              [inventory-svc] GET /stock/:sku   ├───┤                           45ms
                redis: HGET                     ├┤                               4ms
            db: INSERT orders                                               ┃    4ms

      slowest: [stripe-api] POST 275ms (89 %)
      "
    `)
  })

  it.each([70, 80, 100, 120, 200])('names everything in full in %i columns', (width) => {
    for (const names of [checkout, declined]) expect(waterfall(names(), { width })).not.toContain('…')
  })

  it('shows when each span ran where there is room for that beside names and bars', () => {
    const drawn = (width: number) => waterfall(checkout(), { width })
    expect(drawn(81)).toContain('  301–305ms    4ms')
    expect(drawn(80)).not.toContain('301–305ms')
    expect(drawn(80)).toContain('    4ms')
  })

  it('fits forty columns', () => {
    expect(printed(checkout(), { width: 40 })).toMatchInlineSnapshot(`
      "
      trace 4bf92f3577b34da6a3ce929d0e0e4736
      310ms · 10 spans · 4 services
      no errors

                          0     310ms
                          ┌─────────┐
      [api-gateway] POS…  ┣─────────┫  310ms
       → POST order-ser…  ┣─────────┫  299ms
        [order-service]…  ┣─────────┫  293ms
         → POST payment…  ┣─────────┫  287ms
          [payment-svc]…  ┣─────────┫  285ms
           [stripe-api]…  ┣━━━━━━━━━┫  275ms ◄
         → GET inventor…  ├─┤           48ms
          [inventory-sv…  ├─┤           45ms
           redis: HGET    │              4ms
         db: INSERT ord…            ┃    4ms

      slowest: [stripe-api] POST 275ms (89 %)
      "
    `)
  })

  it('is a list of durations where there is no room for bars', () => {
    expect(printed(checkout(), { width: 24 })).toMatchInlineSnapshot(`
      "
      trace 4bf92f3577b34da6a…
      310ms · 10 spans
      4 services · no errors

      [api-gateway] …  310ms
       → POST order-…  299ms
        [order-servi…  293ms
         → POST paym…  287ms
          [payment-s…  285ms
           [stripe-a…  275ms ◄
         → GET inven…   48ms
          [inventory…   45ms
           redis: HG…    4ms
         db: INSERT …    4ms

      slowest: [stripe-api]
      POST 275ms (89 %)
      "
    `)
  })

  it('is as wide as it likes where width has no end', () => {
    expect(printed(checkout(), { width: Infinity })).toMatchInlineSnapshot(`
      "
      trace 4bf92f3577b34da6a3ce929d0e0e4736 · 310ms · 10 spans · 4 services · no errors

                                               0           50ms       100ms       150ms      200ms       250ms    310ms
                                               ┌───────────┬──────────┬───────────┬──────────┬───────────┬────────────┐
      [api-gateway] POST /checkout             ┣━─────────────────────────────────────────────────────────────────────┫    0–310ms  310ms
        → POST order-service                    ┣━────────────────────────────────────────────────────────────────────┫    8–307ms  299ms
          [order-service] POST /orders           ┣───────────────────────────────────────────────────────────────────┫    12–305ms  293ms
            → POST payment-svc                    ┣─────────────────────────────────────────────────────────────────┫     14–301ms  287ms
              [payment-svc] POST /charge          ┣━────────────────────────────────────────────────────────────────┫     15–300ms  285ms
                [stripe-api] POST                  ┣━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┫      20–295ms  275ms ◄
            → GET inventory-svc                   ├──────────┤                                                             14–62ms   48ms
              [inventory-svc] GET /stock/:sku     ├─────────┤                                                              15–60ms   45ms
                redis: HGET                        ├┤                                                                      20–24ms    4ms
            db: INSERT orders                                                                                       ┣┫   301–305ms    4ms

      slowest: [stripe-api] POST 275ms (89 %)
      "
    `)
  })

  it('looks the same in whichever order its spans came', () => {
    expect(waterfall(checkout().toReversed())).toBe(waterfall(checkout()))
  })

  it('is a hundred columns wide and without colour when nothing is said', () => {
    const text = waterfall(checkout(), { width: 100, color: false })
    expect(waterfall(checkout())).toBe(text)
    for (const width of [0, -5, Number.NaN]) expect(waterfall(checkout(), { width })).toBe(text)
  })

  it('has the same text with and without colour', () => {
    const colored = waterfall(declined(), { color: true })
    expect(colored).not.toBe(waterfall(declined()))
    expect(colored.replace(colors, '')).toBe(waterfall(declined()))
  })

  it('shows what is slow in yellow and what failed in red', () => {
    const text = waterfall(checkout(), { color: true })
    expect(text).toContain('\u001B[1;33mslowest: [stripe-api] POST 275ms (89 %)\u001B[0m')
    expect(waterfall(declined(), { color: true })).toContain(
      '\u001B[1;31m✗ CardError: card_declined\u001B[0m',
    )
    expect(text).not.toContain('\u001B[1;31m')
  })

  it.each([1, 2, 5, 10, 16, 20, 24, 30, 36, 40, 50, 60, 72, 80, 100, 120, 200, 500])(
    'is never wider than %i columns',
    (width) => {
      for (const line of lines(waterfall(declined(), { width }))) {
        expect(columnsOf(line)).toBeLessThanOrEqual(width)
      }
    },
  )
})

describe('a declined payment', () => {
  it('shows each error with its message, and the deepest as the origin', () => {
    expect(printed(declined())).toMatchInlineSnapshot(`
      "
      trace 4bf92f3577b34da6a3ce929d0e0e4736 · 310ms · 9 spans · 4 services · 3 errors

                                               0            100ms        200ms    310ms
                                               ┌────────────┬────────────┬────────────┐
      ✗ [api-gateway] POST /checkout           ┣──────────────────────────────────────┫   0–310ms  310ms
          ✗ HTTP 502
        → POST order-service                    ┣─────────────────────────────────────┫   8–307ms  299ms
          [order-service] POST /orders          ┣─────────────────────────────────────┫  12–305ms  293ms
            → POST payment-svc                  ┣────────────────────────────────────┫   14–301ms  287ms
              ✗ [payment-svc] POST /charge      ┣━───────────────────────────────────┫   15–300ms  285ms
                  ✗ payment failed
                ✗ [stripe-api] POST              ┣━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┫   20–295ms  275ms ◄
                    ✗ CardError: card_declined
            → GET inventory-svc                 ├─────┤                                   14–62ms   48ms
              [inventory-svc] GET /stock/:sku   ├─────┤                                   15–60ms   45ms
                redis: HGET                      ├┤                                       20–24ms    4ms

      slowest: [stripe-api] POST 275ms (89 %)
      origin of 3 errors: [stripe-api] POST: CardError: card_declined
      "
    `)
  })

  it('names the error of a single failure too', () => {
    const failed = { code: 'error' as const, message: 'out of stock' }
    expect(printed([span(1, 'shop', 'GET /', [0, 10], { status: failed })])).toMatchInlineSnapshot(`
      "
      trace 4bf92f3577b34da6a3ce929d0e0e4736 · 10ms · 1 span · 1 service · 1 error

                      0             2ms          4ms           6ms          8ms       10ms
                      ┌─────────────┬────────────┬─────────────┬────────────┬────────────┐
      ✗ [shop] GET /  ┣━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┫  0–10ms  10ms
          ✗ out of stock

      error: [shop] GET /: out of stock
      "
    `)
  })

  it('falls back on the error type, and wraps a message that is long', () => {
    const error = { code: 'error' as const, message: '' }
    const long = { code: 'error' as const, message: `${'the upstream said no '.repeat(6)}${'x'.repeat(200)}` }
    const spans = [
      span(1, 'shop', 'GET /', [0, 10], { status: error, attributes: { 'error.type': 'TimeoutError' } }),
      span(2, 'shop', 'work', [1, 9], { parent: 1, status: long }),
    ]
    expect(printed(spans, { width: 60 })).toMatchInlineSnapshot(`
      "
      trace 4bf92f3577b34da6a3ce929d0e0e4736 · 10ms · 2 spans
      1 service · 2 errors

                      0             5ms       10ms
                      ┌─────────────┬────────────┐
      ✗ [shop] GET /  ┣━━──────────────────────━━┫  0–10ms  10ms
          ✗ TimeoutError
        ✗ work          ┣━━━━━━━━━━━━━━━━━━━━━━┫     1–9ms   8ms ◄
            ✗ the upstream said no the upstream said no the
            upstream said no the upstream said no the upstream
            said no the upstream said no xxxxxxxxxxxxxxxxxxxxxxxx…

      slowest: [shop] work 8ms (80 %)
      origin of 2 errors: [shop] work: the upstream said no the
      upstream said no the upstream said no the upstream said no
      the upstream said no the upstream said no xxxxxxxxxxxxxxxxx…
      "
    `)
  })
})

describe('the tree', () => {
  it('says of an orphan that its parent never arrived', () => {
    const spans = [
      span(1, 'shop', 'GET /', [0, 100], { kind: 'server' }),
      span(3, 'stock', 'GET /stock', [20, 60], { kind: 'server', parent: 2 }),
      span(4, 'stock', 'count', [30, 40], { parent: 3 }),
    ]
    expect(printed(spans)).toMatchInlineSnapshot(`
      "
      trace 4bf92f3577b34da6a3ce929d0e0e4736 · 100ms · 3 spans · 2 services · no errors

                          0           20ms         40ms        60ms         80ms   100ms
                          ┌───────────┬────────────┬───────────┬────────────┬──────────┐
      [shop] GET /        ┣━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┫  0–100ms  100ms ◄
      [stock] GET /stock              ├────────────────────────┤                          20–60ms   40ms
          ! its parent 0000000000000002 never arrived
        count                               ├─────┤                                       30–40ms   10ms

      slowest: [shop] GET / 100ms (100 %)
      "
    `)
  })

  it('shows where links lead, in this trace and out of it, and counts those it leaves out', () => {
    const other = '0af7651916cd43dd8448eb211c80319c'
    const spans = [
      span(1, 'shop', 'publish order', [0, 5], { kind: 'producer' }),
      span(2, 'mailer', 'process orders', [20, 50], {
        kind: 'consumer',
        parent: 1,
        links: [link(hex(1)), link('b7ad6b7169203331', other), link(hex(99)), link(hex(7)), link(hex(8))],
      }),
    ]
    expect(printed(spans)).toMatchInlineSnapshot(`
      "
      trace 4bf92f3577b34da6a3ce929d0e0e4736 · 50ms · 2 spans · 2 services · no errors

                                 0          10ms       20ms        30ms       40ms   50ms
                                 ┌──────────┬──────────┬───────────┬──────────┬─────────┐
      [shop] → publish order     ┣━━━━┫                                                      0–5ms   5ms
        [mailer] process orders                        ┣━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┫  20–50ms  30ms ◄
            ↗ links to [shop] publish order
            ↗ links to span b7ad6b7169203331 of trace 0af7651916cd43dd8448eb211c80319c
            ↗ links to span 0000000000000063, which is not here
            ↗ and 2 more links

      slowest: [mailer] process orders 30ms (60 %)
      idle: 15ms in no span (30 %)
      "
    `)
  })

  it('speaks of one link as one', () => {
    const links = [hex(7), hex(8), hex(9), hex(10)].map((id) => link(id))
    expect(printed([span(1, 'shop', 'publish order', [0, 5], { links })])).toMatch(/↗ and 1 more link$/m)
  })

  it('shows every span once when parents lead in a circle, and the way there', () => {
    const spans = [
      span(1, 'a', 'one', [10, 20], { parent: 3 }),
      span(2, 'a', 'two', [0, 20], { parent: 1 }),
      span(3, 'a', 'three', [5, 20], { parent: 2 }),
      span(4, 'a', 'self', [6, 9], { parent: 4 }),
      span(5, 'a', 'below the circle', [-1, 2], { parent: 1 }),
    ]
    expect(printed(spans)).toMatchInlineSnapshot(`
      "
      trace 4bf92f3577b34da6a3ce929d0e0e4736 · 21ms · 5 spans · 1 service · no errors

                              0             5ms           10ms          15ms         21ms
                              ┌─────────────┬─────────────┬─────────────┬───────────────┐
      [a] two                   ┣━━━━━━━━━━━━━━─────────────────────────────────────────┫   1–21ms  20ms
          ! its parents lead back to itself
        three                                 ┣━━━━━━━━━━━━━━───────────────────────────┫   6–21ms  15ms
          one                                               ┣━━━━━━━━━━━━━━━━━━━━━━━━━━━┫  11–21ms  10ms ◄
            below the circle  ├───────┤                                                      0–3ms   3ms
                ! it starts 11ms before its parent (clock skew?)
      [a] self                                   ├────────┤                                 7–10ms   3ms
          ! its parents lead back to itself

      slowest: [a] one 10ms (48 %)
      "
    `)
  })

  it('keeps both spans of one id, and gives the children to the one of their service', () => {
    const spans = [
      span(1, 'shop', 'GET', [0, 50], { kind: 'client' }),
      span(1, 'stock', 'GET /stock', [10, 40], { kind: 'server' }),
      span(2, 'stock', 'count', [15, 30], { parent: 1 }),
    ]
    expect(printed(spans)).toMatchInlineSnapshot(`
      "
      trace 4bf92f3577b34da6a3ce929d0e0e4736 · 50ms · 3 spans · 2 services · no errors

                          0            10ms        20ms         30ms        40ms     50ms
                          ┌────────────┬───────────┬────────────┬───────────┬───────────┐
      [shop] → GET        ┣━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┫   0–50ms  50ms ◄
          ! its id 0000000000000001 is there more than once
      [stock] GET /stock              ├─────────────────────────────────────┤              10–40ms  30ms
          ! its id 0000000000000001 is there more than once
        count                               ├──────────────────┤                           15–30ms  15ms

      slowest: [shop] → GET 50ms (100 %)
      "
    `)
  })

  it('calls a callee by its host and port when it has no other name', () => {
    const spans = [
      span(1, 'shop', 'GET /', [0, 50], { kind: 'server' }),
      span(2, 'shop', 'GET', [5, 20], {
        kind: 'client',
        parent: 1,
        attributes: { 'server.address': 'api.example.com', 'server.port': 8443 },
      }),
      span(3, 'shop', 'GET', [21, 30], {
        kind: 'client',
        parent: 1,
        attributes: { 'server.address': '::1', 'server.port': 80 },
      }),
      span(4, 'shop', 'find', [31, 35], {
        kind: 'client',
        parent: 1,
        attributes: { 'db.system': 'mongodb' },
      }),
      span(5, 'shop', 'GET', [36, 40], { kind: 'client', parent: 1 }),
      span(6, 'cron', 'GET', [60, 70], { kind: 'client', attributes: { 'server.address': 'shop.example' } }),
    ]
    expect(printed(spans)).toMatchInlineSnapshot(`
      "
      trace 4bf92f3577b34da6a3ce929d0e0e4736 · 70ms · 6 spans · 2 services · no errors

                                    0              20ms           40ms               70ms
                                    ┌──────────────┬──────────────┬─────────────────────┐
      [shop] GET /                  ┣━━━───────────━──────────────━━━━━━━┫                  0–50ms  50ms ◄
        [api.example.com:8443] GET     ┣━━━━━━━━━━━┫                                        5–20ms  15ms
        [[::1]:80] GET                             ┣━━━━━━┫                                21–30ms   9ms
        mongodb: find                                      ┣━━┫                            31–35ms   4ms
        → GET                                                  ┣━━┫                        36–40ms   4ms
      [cron] → GET shop.example                                                  ┣━━━━━━┫  60–70ms  10ms

      slowest: [shop] GET / 18ms of its own (26 %)
      idle: 10ms in no span (14 %)
      "
    `)
  })

  it('puts traces below each other', () => {
    const spans = [
      span(1, 'shop', 'GET /a', [0, 50]),
      span(2, 'shop', 'GET /b', [100, 150], { traceId: '0af7651916cd43dd8448eb211c80319c' }),
    ]
    expect(printed(spans)).toMatchInlineSnapshot(`
      "
      trace 4bf92f3577b34da6a3ce929d0e0e4736 · 50ms · 1 span · 1 service · no errors

                     0             10ms          20ms         30ms          40ms      50ms
                     ┌─────────────┬─────────────┬────────────┬─────────────┬────────────┐
      [shop] GET /a  ┣━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┫  0–50ms  50ms

      trace 0af7651916cd43dd8448eb211c80319c · 50ms · 1 span · 1 service · no errors

                     0             10ms          20ms         30ms          40ms      50ms
                     ┌─────────────┬─────────────┬────────────┬─────────────┬────────────┐
      [shop] GET /b  ┣━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┫  0–50ms  50ms
      "
    `)
  })

  it('says the depth of what is nested deeper than a screen shows', () => {
    const spans = Array.from({ length: 15 }, (_, i) =>
      span(i + 1, 'deep', `level ${i}`, [i, 100 - i], i > 0 ? { parent: i } : {}),
    )
    expect(lines(waterfall(spans)).slice(15, 21)).toEqual([
      expect.stringMatching(/^ {22}level 11 /),
      expect.stringMatching(/^ {24}level 12 /),
      expect.stringMatching(/^ {24}\+1 level 13 /),
      expect.stringMatching(/^ {24}\+2 level 14 /),
      '',
      expect.stringContaining('slowest: [deep] level 14'),
    ])
  })

  it('survives ten thousand spans below each other, and beside each other', () => {
    const chain = Array.from({ length: 10_000 }, (_, i) =>
      span(i + 1, 'deep', 'step', [0, 1000], i > 0 ? { parent: i } : {}),
    )
    const fan = Array.from({ length: 10_000 }, (_, i) =>
      span(i + 1, 'wide', 'step', [i, i + 1], i > 0 ? { parent: 1 } : {}),
    )
    expect(lines(waterfall(chain))).toHaveLength(10_006)
    expect(lines(waterfall(fan)).length).toBeGreaterThan(10_000)
  })

  it('finds the spans that links lead to without looking at all spans for each', () => {
    const size = 1000
    const links = [link(hex(size)), link(hex(size + 1))]
    let looks = 0
    const spans = Array.from({ length: size }, (_, id) =>
      Object.defineProperty(span(id + 1, 'shop', 'consume', [0, 1], { links }), 'spanId', {
        get: () => (looks++, hex(id + 1)),
      }),
    )
    expect(waterfall(spans)).toContain('↗ links to [shop] consume')
    expect(looks).toBeLessThan(10 * size)
  })

  it('is empty for no spans', () => {
    expect(waterfall([])).toBe('')
  })
})

describe('the time', () => {
  it('of a skewed clock is shown as it was measured, and said', () => {
    const spans = [
      span(1, 'shop', 'GET /', [0, 100], { kind: 'server' }),
      span(2, 'shop', 'GET', [20, 80], { kind: 'client', parent: 1 }),
      span(3, 'stock', 'GET /stock', [-40, 10], { kind: 'server', parent: 2 }),
    ]
    expect(printed(spans)).toMatchInlineSnapshot(`
      "
      trace 4bf92f3577b34da6a3ce929d0e0e4736 · 140ms · 3 spans · 2 services · no errors

                              0                   50ms                 100ms      140ms
                              ┌───────────────────┬────────────────────┬──────────────┐
      [shop] GET /                            ┣━━━━━━━─────────────────────────━━━━━━━┫  40–140ms  100ms
        → GET stock                                   ┣━━━━━━━━━━━━━━━━━━━━━━━┫          60–120ms   60ms ◄
          [stock] GET /stock  ┣━━━━━━━━━━━━━━━────┫                                        0–50ms   50ms
              ! it starts 60ms before its parent (clock skew?)

      slowest: [shop] → GET stock 60ms (43 %)
      "
    `)
  })

  it('in which no span ran is said', () => {
    const spans = [
      span(1, 'shop', 'publish', [0, 20], { kind: 'producer' }),
      span(2, 'mailer', 'process', [80, 100], { kind: 'consumer', parent: 1 }),
    ]
    expect(printed(spans)).toMatchInlineSnapshot(`
      "
      trace 4bf92f3577b34da6a3ce929d0e0e4736 · 100ms · 2 spans · 2 services · no errors

                          0           20ms         40ms        60ms         80ms   100ms
                          ┌───────────┬────────────┬───────────┬────────────┬──────────┐
      [shop] → publish    ┣━━━━━━━━━━━┫                                                     0–20ms  20ms ◄
        [mailer] process                                                   ┣━━━━━━━━━━━┫  80–100ms  20ms

      slowest: [shop] → publish 20ms (20 %)
      idle: 60ms in no span (60 %)
      "
    `)
  })

  it('that a span spent itself is told from what it waited for', () => {
    const spans = [
      span(1, 'shop', 'GET /', [0, 100], { kind: 'server' }),
      span(2, 'shop', 'first', [0, 30], { parent: 1 }),
      span(3, 'shop', 'beside', [25, 50], { parent: 1 }),
      span(4, 'shop', 'second', [30, 51], { parent: 1 }),
    ]
    expect(printed(spans)).toMatchInlineSnapshot(`
      "
      trace 4bf92f3577b34da6a3ce929d0e0e4736 · 100ms · 4 spans · 1 service · no errors

                    0             20ms         40ms          60ms         80ms     100ms
                    ┌─────────────┬────────────┬─────────────┬────────────┬────────────┐
      [shop] GET /  ┣──────────────────────────────────━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┫  0–100ms  100ms ◄
        first       ┣━━━━━━━━━━━━━━━━━━━┫                                                  0–30ms   30ms
        beside                       ├───────────────┤                                    25–50ms   25ms
        second                          ┣━━━━━━━━━━━━━┫                                   30–51ms   21ms

      slowest: [shop] GET / 49ms of its own (49 %)
      "
    `)
  })

  it('that makes no sense is said: backwards, without a start, without an end, none at all', () => {
    const spans = [
      span(1, 'shop', 'fine', [0, 100]),
      span(2, 'shop', 'backwards', [50, 20]),
      span(3, 'shop', 'no start', [0, 60], { startTimeUnixNano: 0n }),
      span(4, 'shop', 'no end', [70, 0], { endTimeUnixNano: 0n }),
      span(5, 'shop', 'nothing', [0, 0], { startTimeUnixNano: 0n, endTimeUnixNano: 0n }),
    ]
    expect(printed(spans)).toMatchInlineSnapshot(`
      "
      trace 4bf92f3577b34da6a3ce929d0e0e4736 · 100ms · 5 spans · 1 service · no errors

                        0            20ms         40ms        60ms         80ms    100ms
                        ┌────────────┬────────────┬───────────┬────────────┬───────────┐
      [shop] fine       ┣━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┫  0–100ms  100ms ◄
      [shop] nothing    │                                                                     0ms      ?
          ! it came without times
      [shop] backwards                                  │                                    50ms  -30ms
          ! it ends 30ms before it starts
      [shop] no start                                         │                              60ms      ?
          ! it came without a start
      [shop] no end                                                 │                        70ms      ?
          ! it came without an end

      slowest: [shop] fine 100ms (100 %)
      "
    `)
  })

  it('may be no time at all', () => {
    expect(printed([span(1, 'shop', 'instant', [5, 5])])).toMatchInlineSnapshot(`
      "
      trace 4bf92f3577b34da6a3ce929d0e0e4736 · 0ms · 1 span · 1 service · no errors

                      0
                      ┌──────────────────────────────────────────────────────────────────────┐
      [shop] instant  │                                                                         0ms  0ms
      "
    `)
  })

  it.each([
    [0.000_9, '900ns'],
    [0.012_345, '12.3µs'],
    [1.5, '1.5ms'],
    [999, '999ms'],
    [1240, '1.24s'],
    [59_000, '59s'],
    [125_000, '2m05s'],
    [3_725_000, '1h02m'],
  ])('of %f ms is written %s', (ms, text) => {
    expect(lines(waterfall([span(1, 'shop', 'work', [0, ms])]))[0]).toContain(` · ${text} · `)
  })
})

describe('names from outside', () => {
  it('keep the columns straight when characters are wide', () => {
    const spans = [
      span(1, '注文サービス', 'POST /注文', [0, 100], { kind: 'server' }),
      span(2, '注文サービス', '👩‍👩‍👧 家族割引 🎉', [10, 60], { parent: 1 }),
      span(
        3,
        '注文サービス',
        '在庫を確認してから支払い方法を選択し配送先の住所を検証する非常に長い名前',
        [60, 90],
        {
          parent: 1,
        },
      ),
      span(4, 'shop', 'é̂ plain', [20, 30], { parent: 2 }),
    ]
    const text = printed(spans, { width: 80 })
    expect(text).toMatchInlineSnapshot(`
      "
      trace 4bf92f3577b34da6a3ce929d0e0e4736 · 100ms · 4 spans · 2 services
      no errors

                                                         0         50ms 100ms
                                                         ┌─────────┬────────┐
      [注文サービス] POST /注文                          ┣━────────────────━┫  100ms
        👩‍👩‍👧 家族割引 🎉                                     ┣━──━━━━━┫           50ms ◄
          [shop] é̂ plain                                     ┣┫                 10ms
        在庫を確認してから支払い方法を選択し配送先の住…              ┣━━━━┫     30ms

      slowest: [注文サービス] 👩‍👩‍👧 家族割引 🎉 40ms of its own (40 %)
      "
    `)
    const rows = lines(text).slice(6, 10)
    expect(new Set(rows.map((row) => columnsOf(row.replace(' ◄', ''))))).toEqual(new Set([78]))
  })

  it('cannot move the cursor, clear the screen, turn the line around or hide', () => {
    const evil =
      '\u001B[2J\u001B]0;pwned\u0007 a\r\nb\tc \u009B31m \u202Egnp.exe \u200B\uFEFF \uD800 \u007F \u2028 z'
    const spans = [
      span(1, evil, evil, [0, 10], { status: { code: 'error', message: evil }, links: [] }),
      span(2, 'shop', 'GET', [1, 5], {
        kind: 'client',
        parent: 1,
        attributes: { 'service.peer.name': evil },
      }),
      span(3, 'shop', 'GET', [6, 7], { kind: 'client', parent: 1, attributes: { 'db.system': evil } }),
    ]
    const text = waterfall(spans, { width: 200 })
    expect(text.replaceAll('\n', '')).not.toMatch(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/u)
    expect(text).toContain('[␛[2J␛]0;pwned␇ a b c �31m �gnp.exe �')
    expect(lines(text)).toHaveLength(11)
  })

  it('cost no more than what is shown of them', () => {
    const { segment } = Intl.Segmenter.prototype
    let looks = 0
    const spy = vi.spyOn(Intl.Segmenter.prototype, 'segment').mockImplementation(function (
      this: Intl.Segmenter,
      text: string,
    ) {
      const segments = segment.call(this, text)
      function* counted() {
        for (const each of segments) {
          looks++
          yield each
        }
      }
      return { containing: segments.containing.bind(segments), [Symbol.iterator]: counted } as Intl.Segments
    })
    const looksAt = (repeats: number) => {
      looks = 0
      const message = '在庫 '.repeat(repeats)
      waterfall([span(1, 'shop', message, [0, 1], { status: { code: 'error', message } })])
      return looks
    }
    const atLong = looksAt(600)
    expect(looksAt(200)).toBe(atLong)
    spy.mockRestore()
  })

  it('may be empty, blank, or megabytes long', () => {
    const text = waterfall([
      span(1, '', ' ', [0, 10]),
      span(3, '', '', [0, 10]),
      span(2, 's'.repeat(5e6), '表'.repeat(5e6), [0, 9]),
    ])
    expect(text).toMatch(/\] \(no name\)[^]*\] \(no name\)/)
    for (const line of lines(text)) expect(columnsOf(line)).toBeLessThanOrEqual(100)
  })
})

it('one trace id and one column of time hold whatever spans say', () => {
  const text = waterfall([span(1, 'shop', 'x', [0, 1], { startTimeUnixNano: at(0) })])
  expect(text.startsWith(`trace ${traceId} · 1ms · 1 span · 1 service · no errors\n`)).toBe(true)
})
