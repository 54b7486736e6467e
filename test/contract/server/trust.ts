import { describe, expect, test } from 'vitest'
import { ok, type Contract } from './app.ts'

/** What a proxy tells of a request, and the host that it has asked for itself. */
export const viaProxy = {
  host: '10.0.0.1:80',
  'x-forwarded-host': 'a.com',
  'x-forwarded-proto': 'https',
  'x-forwarded-for': '203.0.113.9, 10.0.0.7',
}

/** Whom to believe about where a request came from. */
export function trustsProxies({ name, spanOf }: Contract): void {
  describe(`${name}: proxies`, () => {
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
