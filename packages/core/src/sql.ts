import { summarizer } from './sql/summary.ts'
import { sanitizer } from './sql/text.ts'
import { eachToken } from './sql/token.ts'

/** What a span may say about a statement. */
export interface SqlDescription {
  /** db.query.text without its literals. */
  readonly text: string
  /** db.query.summary, at most 255 characters; empty if the text holds no statement. */
  readonly summary: string
  /** Whether it was read to its end, held no comment, and none of it is hidden: a comment can stand behind it. */
  readonly isPlain: boolean
}

/** Far more than an application has distinct statements; with the next limit at most 8 MB, or 16 MB beyond Latin-1. */
const CACHE_ENTRIES = 1000

/** In UTF-16 units. Longer texts are bulk statements, rarely the same twice. */
const CACHED_LENGTH = 4096

/** In UTF-16 units. Reading this much takes about ten milliseconds of the host's only thread; no span is worth more. */
const READ_LENGTH = 128 * 1024

const cache = new Map<string, SqlDescription>()

/**
 * Describes a statement in PostgreSQL's dialect (semantic conventions, database spans).
 *
 * `text` holds `?` for every literal and no comments; doing it twice changes nothing. What lies behind the
 * first 128 Ki characters is not read and stands as one `?`. Never throws; any text will do, and what
 * cannot be told apart from a value is hidden with it.
 */
export function describeSql(text: string): SqlDescription {
  return cache.get(text) ?? (text.length > CACHED_LENGTH ? described(text) : kept(copyOf(text)))
}

/**
 * V8's slice keeps the whole string alive: a statement out of a dump of a megabyte would keep all of that. As the text goes to
 * the server, half of a surrogate pair is U+FFFD.
 */
function copyOf(text: string): string {
  return Buffer.from(text).toString()
}

function kept(text: string): SqlDescription {
  const description = described(text)
  const [oldest] = cache.keys()
  if (oldest !== undefined && cache.size >= CACHE_ENTRIES) cache.delete(oldest)
  cache.set(text, description)
  return description
}

function described(text: string): SqlDescription {
  const read = text.length > READ_LENGTH ? text.slice(0, READ_LENGTH) : text
  const sanitized = sanitizer(read)
  const summarized = summarizer(read)
  let isPlain = read.length === text.length
  eachToken(read, (kind, start, end) => {
    if (kind === 'comment' || kind === 'hidden') isPlain = false
    sanitized.visit(kind, start, end)
    summarized.visit(kind, start, end)
  })
  const shown = sanitized.finish()
  const summary = summarized.finish()
  return {
    // The same string where nothing changed, so that the cache holds it once.
    text: read.length < text.length ? `${shown}?` : shown === text ? text : shown,
    summary,
    // Where nothing is asked there is nothing to comment on.
    isPlain: isPlain && summary !== '',
  }
}
