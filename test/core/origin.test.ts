import { describe, expect, it } from 'vitest'
import { serverOf, shownUrlOf, urlOf } from '../../packages/core/src/http-client/origin.ts'
import { redactUrl } from '../../packages/core/src/redact.ts'

const ORIGINS = ['http://h', 'https://h:8443/', 'http://u:p@h', 'http://u@h:80', 'http://h/base', 'none', '']
const PATHS = [
  '/',
  '/a?b=1',
  '/a?sig=x#y',
  '/a#b?sig=x',
  '//u:p@x/?sig=x',
  '/?%73ig=x&b=1',
  'http://u:p@proxied/a?sig=x',
]

describe('the URL of a request', () => {
  it.each(ORIGINS)('is shown by its origin and its path as it is shown as a whole: %s', (origin) => {
    for (const path of PATHS) {
      const request = { method: 'GET', origin, path }
      const url = urlOf(request)
      for (const keys of [undefined, new Set(['b'])])
        expect(shownUrlOf(request, url, keys)).toBe(redactUrl(url, keys))
    }
  })

  it('shows neither the credentials of an origin nor those that stand elsewhere', () => {
    const request = { method: 'GET', origin: 'http://u:p@h', path: '/a' }
    expect(shownUrlOf(request, urlOf(request), undefined)).toBe('http://REDACTED:REDACTED@h/a')
    const bare = { method: 'GET', origin: 'http://h', path: '/a?sig=x', hasCredentials: true }
    expect(shownUrlOf(bare, urlOf(bare), undefined)).toBe('http://REDACTED:REDACTED@h/a?sig=REDACTED')
  })

  it('is of the origin that is asked, however many were asked before', () => {
    for (let port = 1; port <= 300; port++) {
      const request = { method: 'GET', origin: `http://h:${port}`, path: '/' }
      expect(serverOf(request)).toMatchObject({ address: 'h', port })
      expect(urlOf(request)).toBe(`http://h:${port}/`)
    }
    expect(serverOf({ method: 'GET', origin: new URL('https://other'), path: '/' })).toMatchObject({
      address: 'other',
      port: 443,
    })
  })
})
