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
  })
}
