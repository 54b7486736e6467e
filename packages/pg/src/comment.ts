import { guarded } from '@throughline/core'
import { headersOf } from '@throughline/core/client'
import { describeSql } from '@throughline/core/sql'
import type { QueryCall } from './query.ts'

/** What a comment is made of: each becomes `key='value'`. */
export type SqlTags = Readonly<Record<string, string | number | boolean | undefined>>

/** `true` for the trace context of a query's span, or a function of the span that returns the tags. */
export type SqlComment = boolean | ((span: QueryCall['span']) => SqlTags)

/** The text of a query with a comment behind it, or the same text where there is to be none. */
export type Commenter = (text: string, call: QueryCall) => string

const SAMPLED = 1
/** What is private to the services of the app. It would stay in the logs of the server. */
const BAGGAGE = 'baggage'

export function commenter(option: SqlComment | undefined): Commenter | undefined {
  if (option === undefined || option === false) return undefined
  const commentOf = guarded('sqlcomment', commentWith)
  const tagsOf = option === true ? undefined : guarded('sqlcomment', option)
  return (text, call) => {
    const { span } = call
    if ((span.spanContext().traceFlags & SAMPLED) === 0 || !describeSql(text).isPlain) return text
    const comment = commentOf?.(tagsOf === undefined ? contextOf(call) : tagsOf(span))
    return comment === undefined || comment === '' ? text : `${text} ${comment}`
  }
}

function contextOf(call: QueryCall): SqlTags {
  const { [BAGGAGE]: _private, ...headers } = headersOf(call.context)
  return headers
}

/** The tags as sqlcommenter writes them: encoded, in the order of their names; empty without any. */
function commentWith(tags: SqlTags | undefined): string {
  if (typeof tags !== 'object' || tags === null) return ''
  const pairs = Object.entries(tags)
    .filter(([, value]) => value !== undefined && value !== null && value !== '')
    .map(([key, value]) => `${encoded(key)}='${encoded(String(value))}'`)
  return pairs.length === 0 ? '' : `/*${pairs.toSorted().join(',')}*/`
}

/** Percent-encoded, also what a URL could keep: with an apostrophe the value would end, with an asterisk the comment might. */
function encoded(text: string): string {
  return encodeURIComponent(text.replace(/\p{Cs}/gu, '\uFFFD')).replace(
    /[!'()*]/g,
    (mark) => `%${mark.charCodeAt(0).toString(16).toUpperCase()}`,
  )
}

/** The first argument of a query with this text in place of its own; the app's config object stays as it is. */
export function withText(first: unknown, text: string): unknown {
  if (typeof first !== 'object' || first === null) return text
  return Object.create(Object.getPrototypeOf(first) as object, {
    ...Object.getOwnPropertyDescriptors(first),
    text: { value: text, writable: true, enumerable: true, configurable: true },
  })
}
