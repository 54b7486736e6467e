import { describe, expect, test } from 'vitest'
import { ok, type Contract } from './app.ts'

/** Whom to believe about where a request came from. */
export function trustsProxies({ name, spanOf }: Contract): void {
  describe(`${name}: proxies`, () => {
    const viaProxy = {
      host: '10.0.0.1:80',
      'x-forwarded-host': 'a.com',
      'x-forwarded-proto': 'https',
      'x-forwarded-for': '203.0.113.9, 10.0.0.7',
    }

    test('trustProxy believes what the proxies say', async () => {
      const span = await spanOf(ok, '/', { headers: viaProxy }, { trustProxy: true })
      expect(span.attributes).toMatchObject({
        'server.address': 'a.com',
        'url.scheme': 'https',
        'client.address': '203.0.113.9',
        'network.peer.address': '127.0.0.1',
      })
      expect(span.attributes).not.toHaveProperty('server.port')
    })

    test('without trustProxy nobody is believed', async () => {
      const span = await spanOf(ok, '/', { headers: viaProxy })
      expect(span.attributes).toMatchObject({
        'server.address': '10.0.0.1',
        'server.port': 80,
        'url.scheme': 'http',
        'client.address': '127.0.0.1',
      })
    })

    test.each<[string, Record<string, string>, Record<string, unknown>]>([
      [
        'the standard header',
        { forwarded: 'for=203.0.113.9;host=a.com;proto=https' },
        { 'client.address': '203.0.113.9', 'server.address': 'a.com', 'url.scheme': 'https' },
      ],
      [
        'the standard header before the others',
        { forwarded: 'for=203.0.113.9', 'x-forwarded-for': '198.51.100.1', 'x-forwarded-proto': 'https' },
        { 'client.address': '203.0.113.9', 'server.address': '10.0.0.1', 'url.scheme': 'https' },
      ],
      [
        'the proxy nearest to the client, of several',
        { forwarded: 'for="[2001:db8::7]:4711";host="a.com:8443", for=10.0.0.9;host=b.com' },
        { 'client.address': '2001:db8::7', 'server.address': 'a.com', 'server.port': 8443 },
      ],
      [
        'a client of IPv6',
        { 'x-forwarded-for': '2001:db8::7', 'x-forwarded-host': '[::1]:3000' },
        { 'client.address': '2001:db8::7', 'server.address': '::1', 'server.port': 3000 },
      ],
      [
        'no client that the proxy keeps to itself',
        { forwarded: 'for=unknown' },
        { 'client.address': '127.0.0.1' },
      ],
    ])('are believed with trustProxy: %s', async (_title, told, wanted) => {
      const headers = { host: '10.0.0.1:80', ...told }
      const believed = await spanOf(ok, '/', { headers }, { trustProxy: true })
      expect(believed.attributes).toMatchObject({ ...wanted, 'network.peer.address': '127.0.0.1' })
    })

    test('that nobody trusts change nothing, by whichever header', async () => {
      const headers = {
        host: '10.0.0.1:80',
        forwarded: 'for=203.0.113.9;host=a.com;proto=https',
        'x-forwarded-for': '203.0.113.9',
      }
      expect((await spanOf(ok, '/', { headers })).attributes).toMatchObject({
        'server.address': '10.0.0.1',
        'server.port': 80,
        'url.scheme': 'http',
        'client.address': '127.0.0.1',
      })
    })
  })
}
