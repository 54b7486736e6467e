import { describe, expect, test } from 'vitest'
import { alternativesOf, type Key } from '../../packages/express/src/regexp.ts'
import { express4, ok } from './app.ts'

type Path = string | RegExp
type Made = { regexp: RegExp; keys: Key[] }

/** What Express 4 keeps of a path. */
function madeOf(kind: 'route' | 'mount', path: Path | Path[]): Made {
  const router = express4.Router()
  if (kind === 'mount') router.use(path, ok)
  else router.get(path, ok)
  return (router.stack as unknown as Made[])[0] as Made
}

describe('what Express 4 has made of a path is written as the app wrote it', () => {
  test.each<[kind: 'route' | 'mount', written: Path | Path[], asked: string, shown: string]>([
    ['mount', '/users/:id', '/users/7', '/users/:id'],
    ['mount', '/files/:name.:ext', '/files/a.txt', '/files/:name.:ext'],
    ['mount', '/v:major.:minor', '/v1.2', '/v:major.:minor'],
    ['mount', '/a/:id?', '/a/7', '/a/:id?'],
    ['mount', ['/', '/x'], '/', '/'],
    ['mount', ['/a/:x', '/b/:y'], '/b/1', '/b/:y'],
    ['mount', ['/a/:x(\\d+)', '/b/:y'], '/b/1', '/b/:y'],
    ['mount', ['/:x/(\\d+)/a', '/b/:y'], '/b/1', '/b/:y'],
    // One that is as Express makes them is read as one.
    ['mount', /^\/x(?:(?:a))\/?(?=\/|$)/, '/xa', '/x((a))'],
    ['route', ['/a/:x', '/b/:y'], '/b/1', '/b/:y'],
    ['route', '/ab*cd', '/abxcd', '/ab*cd'],
    // An app's RegExp is its own name, whatever is in it.
    ['mount', /^\/a/, '/a', '/^\\/a/'],
    ['mount', /^\/a|\/b/, '/b', '/^\\/a|\\/b/'],
    ['mount', /\/a|^\/b/, '/b', '/\\/a|^\\/b/'],
    ['mount', /^\/[\]|^]x/, '/|x', '/^\\/[\\]|^]x/'],
    ['mount', /^\/\(|^\/x/, '/(', '/^\\/\\(/'],
    ['mount', /(?:^\/a)|(?:^\/b)/, '/b', '/(?:^\\/a)|(?:^\\/b)/'],
    ['mount', [/^\/a(b)(c)/, '/:y'] as Path[], '/y', '/:y'],
    ['mount', [/^\/a(?<id>b)/, '/:y'] as Path[], '/y', '/:y'],
    ['mount', [/^\/a((b)c)/, '/:y'] as Path[], '/y', '/:y'],
    ['mount', [/^\/a(?<=a)(b)/, '/:y'] as Path[], '/y', '/:y'],
    ['mount', /(\/a|\/b)/, '/b', '/(\\/a|\\/b)/'],
  ])('%s %s, asked for by %s', (kind, written, asked, shown) => {
    const { regexp, keys } = madeOf(kind, written)
    expect(regexp.exec(asked)).not.toBeNull()
    const of = alternativesOf(regexp, keys, kind).find(({ matched }) => matched(asked) !== undefined)
    expect(String(of?.path)).toBe(shown)
  })

  // path-to-regexp 0.1.7, of Express 4.18.
  test('of several paths up to 4.20, which are in one group', () => {
    const regexp = /(?:^\/a\/(?:([^/]+?))\/?(?=\/|$)|^\/b\/(?:([^/]+?))\/?(?=\/|$))/i
    const alternatives = alternativesOf(regexp, [{ name: 'x' }, { name: 'y' }], 'mount')
    expect(alternatives.map(({ path }) => path)).toEqual(['/a/:x', '/b/:y'])
  })

  test.each(['g', 'y'])('and a RegExp with the flag %s matches as often as it is asked', (flag) => {
    const [of] = alternativesOf(new RegExp('^/a', flag), [], 'mount')
    expect([of?.matched('/a'), of?.matched('/a')]).toEqual(['/a', '/a'])
  })
})
