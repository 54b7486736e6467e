/**
 * What must not leave the process in a URL: credentials, and the values of query keys that carry signatures
 * (OpenTelemetry semantic conventions, url.full and url.query). Keys are compared exactly, case included.
 */
const SECRET_KEYS = new Set([
  'X-Amz-Signature',
  'X-Amz-Credential',
  'X-Amz-Security-Token',
  'AWSAccessKeyId',
  'Signature',
  'sig',
  'X-Goog-Signature',
])

/** Most queries hold no such key and need not be split. A percent sign may hide one. */
const MAY_HOLD_SECRET = new RegExp([...SECRET_KEYS, '%'].join('|'))

export const REDACTED = 'REDACTED'
const CREDENTIALS = `${REDACTED}:${REDACTED}`

/** `https://user:pass@host/?sig=x` → `https://REDACTED:REDACTED@host/?sig=REDACTED`; `keys` take the place of the list. */
export function redactUrl(url: string, keys?: ReadonlySet<string>): string {
  const start = url.indexOf('?')
  if (start === -1) return redactCredentials(url)
  return redactCredentials(url.slice(0, start)) + redactTarget(url.slice(start), keys)
}

/** A path with its query: `/a?sig=x#b` → `/a?sig=REDACTED#b`. */
export function redactTarget(target: string, keys?: ReadonlySet<string>): string {
  const start = target.indexOf('?')
  if (start === -1) return target
  const fragment = target.indexOf('#', start)
  const end = fragment === -1 ? target.length : fragment
  return target.slice(0, start + 1) + redactQuery(target.slice(start + 1, end), keys) + target.slice(end)
}

/** `a=1&sig=x` → `a=1&sig=REDACTED`. The query stands without its `?`. */
export function redactQuery(query: string, keys: ReadonlySet<string> = SECRET_KEYS): string {
  if (keys === SECRET_KEYS && !MAY_HOLD_SECRET.test(query)) return query
  return query
    .split('&')
    .map((pair) => {
      const key = pair.split('=', 1)[0] as string
      return key.length < pair.length && keys.has(decoded(key)) ? `${key}=${REDACTED}` : pair
    })
    .join('&')
}

function decoded(key: string): string {
  try {
    return decodeURIComponent(key)
  } catch {
    return key
  }
}

/**
 * URLs in a text: from their two slashes to the next blank, quotation mark, or URL of a list, as of the hosts of a cluster. Of
 * three slashes the last two are the beginning of none: `file:///app/x@1.2/`.
 */
const URLS = /(?<!\/)\/\/[^\s"<>`]+?(?=[,;|'][a-z][a-z\d+.-]{0,30}:\/\/|[\s"<>`]|$)/gi

/** A text, as a message of an error, with its URLs as `redactUrl` shows them. */
export function redactText(text: string): string {
  return text.includes('//') ? text.replace(URLS, (url) => redactUrl(url)) : text
}

// Credentials stand between `//` and the last `@` before the path.
function redactCredentials(url: string): string {
  // Nearly no URL holds any: saves 0.3 µs.
  if (!url.includes('@')) return url
  const start = startOfAuthority(url)
  if (start === -1) return url
  const authority = /[/?#]/.exec(url.slice(start))
  const end = authority === null ? url.length : start + authority.index
  const at = url.lastIndexOf('@', end - 1)
  if (at <= start) return url
  const credentials = url.slice(start, at).includes(':') ? CREDENTIALS : REDACTED
  return `${url.slice(0, start)}${credentials}${url.slice(at)}`
}

/** A URL without its scheme begins with the slashes. */
function startOfAuthority(url: string): number {
  if (url.startsWith('//')) return 2
  const scheme = url.indexOf('://')
  return scheme === -1 ? -1 : scheme + 3
}

/** A URL whose credentials are known from elsewhere, as one that had them is shown (semantic conventions, `url.full`). */
export function withCredentials(url: string): string {
  return url.replace('://', `://${CREDENTIALS}@`)
}
