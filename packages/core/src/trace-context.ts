import type { SpanContext, TraceState } from '@opentelemetry/api'

// The headers `traceparent` and `tracestate` ⇄ SpanContext, by W3C Trace Context Level 2
// (https://www.w3.org/TR/trace-context-2/). Every service on a request's way runs this code, on bytes that
// anyone may have sent. So: nothing here throws, whatever a carrier holds; the cost is linear in the header's
// length; and a header is checked in one go, without splitting it, so that the common case allocates nothing
// but its result.

const TAB = 0x09
const SPACE = 0x20
const COMMA = 0x2c
const DASH = 0x2d
const EQUALS = 0x3d

/** `version "-" trace-id "-" parent-id "-" trace-flags`: the whole of version 00, the known part of the others. */
export const TRACEPARENT_LENGTH = 55

/** sampled (0x01) and random (0x02): the bits that Level 2 defines (§3.2.2.5). Others are ignored and sent as 0. */
const KNOWN_FLAGS = 0x03

/** "There can be a maximum of 32 list-members in a list" (§3.3.1). */
const MAX_MEMBERS = 32

/** Of a tracestate key, and of a tracestate value (§3.3.1.3). */
const MAX_PART_LENGTH = 256

/** A list that must be cut loses the members longer than this first (§3.3.1.5). */
const LONG_MEMBER_LENGTH = 128

/**
 * What is sent of a tracestate, in characters. §3.3.1.5 asks for 512 at least. More is kept, because a member
 * that is cut is another vendor's trace broken; but not all of the 16 KiB that 32 members can hold, because
 * then the request itself is refused: nginx and Apache accept about 8 KiB for one header line, Node 16 KiB for
 * all headers together. This takes half of the one and a quarter of the other.
 */
const TRACESTATE_LIMIT = 4096

/**
 * No longer value is read as a header, in characters: the longest message, headers included, that Kafka takes by
 * default. HTTP servers have lower limits of their own; other carriers may have none, and a Buffer can be too
 * long to be a string at all.
 */
const FIELD_LIMIT = 1_048_576

/**
 * Writes the `traceparent` of a context that is valid in the sense of the API's `isSpanContextValid`. Always
 * version 00, also when the context came in with a higher one; always two digits of flags, unknown bits zero
 * (§3.2.2.5, §3.2.4).
 */
export function formatTraceparent(context: SpanContext): string {
  // Not by a template: V8 then asks of each part whether it is a text, 0.03 µs each.
  return '00-' + context.traceId + '-' + context.spanId + FLAG_DIGITS[context.traceFlags & KNOWN_FLAGS]
}

// Converting a number to text costs 0.04 µs.
const FLAG_DIGITS = ['-00', '-01', '-02', '-03']

/**
 * Reads a `tracestate` header, several fields already combined with `,` (§3.3.1).
 *
 * Strict: one member that breaks the grammar, or a 33rd, discards the list, since what else came from that
 * sender cannot be trusted. Empty members are no errors and do not count: they appear wherever an empty header
 * was combined with another. Of members with the same key the left-most, the most recent, is kept.
 *
 * @returns `emptyTraceState` if there is no member, undefined if the list is discarded. Neither says anything
 *   about the `traceparent` beside it.
 */
export function parseTracestate(value: string): TraceState | undefined {
  const length = value.length
  let seen = 0
  let kept = 0
  // Whether the header is already what would be sent for it, so that it can be kept as it is.
  let canonical = true
  let at = 0
  for (;;) {
    const start = skipBlanks(value, at, length)
    if (start !== at) canonical = false
    if (start === length || value.charCodeAt(start) === COMMA) {
      canonical = false
      at = start
    } else {
      const keyEnd = endOfKey(value, start)
      if (keyEnd < 0 || value.charCodeAt(keyEnd) !== EQUALS) return undefined
      const end = endOfValue(value, keyEnd + 1)
      if (end < 0) return undefined
      // The blanks after a value belong to the list, not to the value.
      at = skipBlanks(value, end, length)
      if (at !== length && value.charCodeAt(at) !== COMMA) return undefined
      if (++seen > MAX_MEMBERS) return undefined
      if (keepUnlessKnown(value, kept, start, keyEnd, end)) {
        kept++
        if (at !== end) canonical = false
      } else {
        canonical = false
      }
    }
    if (at === length) break
    at++
  }
  if (kept === 0) return emptyTraceState
  if (canonical) return new TraceStateList(value)
  let list = value.slice(starts[0], ends[0])
  for (let i = 1; i < kept; i++) list += ',' + value.slice(starts[i], ends[i])
  return new TraceStateList(list)
}

/**
 * The value to send as `tracestate`, or `''` when the header is to be left out: an empty one should not be sent
 * (§3.3.1).
 *
 * A list longer than 4096 characters is cut by whole members, those of more than 128 characters first, then
 * from the right end, where the oldest are (§3.3.1.5). A state that is not ours may hold more than 32 members,
 * and loses the right-most ones; if it is not a valid list even then, nothing is sent.
 */
export function serializeTracestate(state: TraceState): string {
  const list = state instanceof TraceStateList ? state.serialize() : foreignList(state)
  return list.length <= TRACESTATE_LIMIT ? list : cut(list)
}

/** The state's content in one of ours: another implementation's `set` may do anything. */
export function ownState(state: TraceState): TraceState {
  return state instanceof TraceStateList ? state : new TraceStateList(foreignList(state))
}

/** The content of another implementation's state, as a list that may be sent; `''` if there is none. */
function foreignList(state: TraceState): string {
  let list: unknown
  try {
    list = state.serialize()
  } catch {
    return ''
  }
  if (typeof list !== 'string' || list.length > FIELD_LIMIT) return ''
  return parseTracestate(firstMembers(list, MAX_MEMBERS))?.serialize() ?? ''
}

/**
 * Reads the context out of what a carrier holds under `traceparent` and `tracestate`: a string, or a Buffer of
 * latin1 (Kafka, AMQP), or an array of these as `headersDistinct` gives it. More than one traceparent is
 * rejected, even if they are equal; several tracestate values are one list, in their order (RFC 9110 §5.3).
 * Anything else in a carrier is not a header.
 *
 * Version 00 is read to the letter, and of versions 01 to fe the part that 00 knows (§3.2.2, §3.2.4). Spaces and tabs
 * around the value are not part of it. Flags other than sampled (0x01) and random (0x02) have no meaning in Level 2 and
 * must not be passed on, so they are already gone from the result.
 *
 * @returns the remote context, its ids in lower-case hex digits, with a `traceState` if there is a valid one that is not
 *   empty; undefined without a valid traceparent, and then the tracestate is not even read (§4). Two headers that were
 *   combined to `a, b` are not valid either; neither is picked.
 */
export function parseTraceContext(traceparent: unknown, tracestate: unknown): SpanContext | undefined {
  // Nearly always; the other checks are then skipped.
  const usual = typeof traceparent === 'string' ? usualFlags(traceparent) : UNUSUAL
  const context =
    usual === UNUSUAL ? readTraceparent(traceparent) : contextAt(traceparent as string, 0, usual)
  if (context === undefined) return undefined
  if (tracestate === undefined) return context
  const list = combineFields(tracestate)
  const state = list === undefined ? undefined : parseTracestate(list)
  if (state !== undefined && state !== emptyTraceState) context.traceState = state
  return context
}

/**
 * The one value of a header in a carrier: of several fields with this name, their values in order with `,`
 * between them (RFC 9110 §5.3).
 *
 * @returns undefined if the value, or a part of an array, is neither a string nor a Buffer (read as latin1, the
 *   way Node reads HTTP headers), or if it is longer than 1048576 characters.
 */
export function combineFields(value: unknown): string | undefined {
  try {
    return Array.isArray(value) ? combine(value) : fieldText(value)
  } catch {
    return undefined // A proxy, or an array or Buffer with methods of its own.
  }
}

/** The value of a header that may not come twice: of an array of one, its part. */
function soleField(value: unknown): string | undefined {
  try {
    if (Array.isArray(value) && value.length !== 1) return undefined
  } catch {
    return undefined
  }
  return combineFields(value)
}

/** Joined at once: a string grown field by field is a chain of strings, and walking that is not linear. */
function combine(values: readonly unknown[]): string | undefined {
  const texts: string[] = []
  let length = 0
  for (const value of values) {
    const text = fieldText(value)
    if (text === undefined) return undefined
    length += text.length + 1
    if (length - 1 > FIELD_LIMIT) return undefined
    texts.push(text)
  }
  return texts.length === 0 ? undefined : texts.join(',')
}

function fieldText(value: unknown): string | undefined {
  if (typeof value === 'string') return value.length > FIELD_LIMIT ? undefined : value
  if (!Buffer.isBuffer(value) || value.length > FIELD_LIMIT) return undefined
  return value.toString('latin1')
}

// --- traceparent: where things lie, counted from the first character of the version

function contextAt(value: string, at: number, flags: number): SpanContext {
  return {
    traceId: value.slice(at + 3, at + 35),
    spanId: value.slice(at + 36, at + 52),
    traceFlags: flags & KNOWN_FLAGS,
    isRemote: true,
  }
}

/** Any that is valid, however it came. */
function readTraceparent(given: unknown): SpanContext | undefined {
  const value = soleField(given)
  if (value === undefined) return undefined
  const at = findTraceparent(value)
  return at < 0 ? undefined : contextAt(value, at, hexPair(value, at + 53))
}

/** The usual traceparent, of version 00 and with nothing around it; t, p and f stand for any digits. */
const USUAL = `00-${'t'.repeat(32)}-${'p'.repeat(16)}-ff`
const UNUSUAL = -1

/** The places of the usual traceparent that take the same characters have one row in a table, a column for each. */
const ROWS = '0-tpf'
const COLUMNS = 32
const DASH_COLUMN = 16
const OTHER_COLUMN = 31
/** What a character at a place tells of the whole. */
const NO_ZERO_TRACE_ID = 1
const NO_ZERO_SPAN_ID = 2
const INVALID = 4

const columnOf = new Uint8Array(256).fill(OTHER_COLUMN)
for (let digit = 0; digit < 16; digit++) columnOf[digit.toString(16).charCodeAt(0)] = digit
columnOf[DASH] = DASH_COLUMN

const rowAt = Uint8Array.from(USUAL, (place) => ROWS.indexOf(place) * COLUMNS)

const told = new Uint8Array(ROWS.length * COLUMNS).fill(INVALID)
told[ROWS.indexOf('0') * COLUMNS] = 0
told[ROWS.indexOf('-') * COLUMNS + DASH_COLUMN] = 0
for (let digit = 0; digit < 16; digit++) {
  told[ROWS.indexOf('t') * COLUMNS + digit] = digit === 0 ? 0 : NO_ZERO_TRACE_ID
  told[ROWS.indexOf('p') * COLUMNS + digit] = digit === 0 ? 0 : NO_ZERO_SPAN_ID
  told[ROWS.indexOf('f') * COLUMNS + digit] = 0
}

/**
 * The flags of the usual traceparent, their last digit, or UNUSUAL.
 *
 * In one loop that reads the string at one place, by tables: V8 makes 1 KB of machine code of each `charCodeAt`, and what is run once
 * a request comes from memory each time. With a check for each part it was 12 KB, now it is 3.
 */
function usualFlags(value: string): number {
  if (value.length !== TRACEPARENT_LENGTH) return UNUSUAL
  let all = 0
  let column = 0
  for (let at = 0; at < TRACEPARENT_LENGTH; at++) {
    const code = value.charCodeAt(at)
    column = code < columnOf.length ? (columnOf[code] as number) : OTHER_COLUMN
    all |= told[(rowAt[at] as number) | column] as number
  }
  return all === (NO_ZERO_TRACE_ID | NO_ZERO_SPAN_ID) ? column : UNUSUAL
}

/** Where the version starts, or -1 if the value is not exactly one valid traceparent between blanks. */
function findTraceparent(value: string): number {
  let end = value.length
  while (end > 0 && isBlank(value.charCodeAt(end - 1))) end--
  const at = skipBlanks(value, 0, end)
  if (!isTraceparentAt(value, at, end)) return -1
  const next = at + TRACEPARENT_LENGTH
  if (next === end) return at
  const isVersion00 = hexPair(value, at) === 0
  if (isVersion00 || value.charCodeAt(next) !== DASH || hasSecondTraceparent(value, next, end)) return -1
  return at
}

/** Whether the 55 characters from `at` are a traceparent of any version but ff, which is forbidden. */
function isTraceparentAt(value: string, at: number, end: number): boolean {
  // A shorter one would fail below, but reading behind the end of a string makes this code slow for good.
  if (end - at < TRACEPARENT_LENGTH) return false
  const version = hexPair(value, at)
  return (
    version >= 0 &&
    version !== 0xff &&
    value.charCodeAt(at + 2) === DASH &&
    isId(value, at + 3, at + 35) &&
    value.charCodeAt(at + 35) === DASH &&
    isId(value, at + 36, at + 52) &&
    value.charCodeAt(at + 52) === DASH &&
    hexPair(value, at + 53) >= 0
  )
}

/**
 * Whether a comma is followed by another traceparent. What a higher version has after the flags is not ours to
 * judge, a comma included; but two headers that were combined to `a, b` must not be read as `a`.
 */
function hasSecondTraceparent(value: string, from: number, end: number): boolean {
  let comma = value.indexOf(',', from)
  while (comma >= 0) {
    if (isTraceparentAt(value, skipBlanks(value, comma + 1, end), end)) return true
    comma = value.indexOf(',', comma + 1)
  }
  return false
}

/** Lower-case hex digits, not all of them zero: "all bytes as zero is considered an invalid value". */
function isId(value: string, from: number, to: number): boolean {
  // One -1 makes it negative for good, and only zeros leave it 0: cheaper than a branch per digit.
  let bits = 0
  for (let i = from; i < to; i++) bits |= hexDigit(value.charCodeAt(i))
  return bits > 0
}

/** The number that two lower-case hex digits stand for, or less than 0 if one of them is not a digit. */
function hexPair(value: string, at: number): number {
  return (hexDigit(value.charCodeAt(at)) << 4) | hexDigit(value.charCodeAt(at + 1))
}

/** 0 to 15, or -1. Upper case is not allowed anywhere in a traceparent. */
function hexDigit(code: number): number {
  if (code >= 0x30 && code <= 0x39) return code - 0x30
  if (code >= 0x61 && code <= 0x66) return code - 0x57
  return -1
}

/** Optional whitespace (OWS) is space and tab, nothing else: no line breaks, no U+00A0 (RFC 9110 §5.6.3). */
function isBlank(code: number): boolean {
  return code === SPACE || code === TAB
}

/** The text between two places without the spaces and tabs at its ends. */
export function trimBlanks(text: string, from: number, to: number): string {
  const start = skipBlanks(text, from, to)
  let end = to
  while (end > start && isBlank(text.charCodeAt(end - 1))) end--
  return text.slice(start, end)
}

function skipBlanks(value: string, from: number, end: number): number {
  let at = from
  while (at < end && isBlank(value.charCodeAt(at))) at++
  return at
}

// --- tracestate: the grammar, and the members of the list that is being read

const KEY_START = 1
const KEY_PART = 2
const VALUE_PART = 4

/** What each ASCII character may be in a member (§3.3.1.3). */
const roles = new Uint8Array(128)
for (let code = 0x20; code < 0x7f; code++) if (code !== COMMA && code !== EQUALS) roles[code] = VALUE_PART
for (const char of 'abcdefghijklmnopqrstuvwxyz0123456789') roles[char.charCodeAt(0)]! |= KEY_START | KEY_PART
for (const char of '_-*/@') roles[char.charCodeAt(0)]! |= KEY_PART

function mayBe(role: number, code: number): boolean {
  return code < 128 && (roles[code]! & role) !== 0
}

/** Where the key that starts at `start` ends, or -1 if there is none or it is too long. */
function endOfKey(value: string, start: number): number {
  if (start >= value.length || !mayBe(KEY_START, value.charCodeAt(start))) return -1
  let at = start + 1
  while (at < value.length && mayBe(KEY_PART, value.charCodeAt(at))) at++
  return at - start > MAX_PART_LENGTH ? -1 : at
}

/**
 * Where the value that starts at `start` ends, or -1 if it is empty or too long. Spaces before and within a
 * value are part of it; behind its last other character they are not.
 */
function endOfValue(value: string, start: number): number {
  let end = start
  for (let at = start; at < value.length; at++) {
    const code = value.charCodeAt(at)
    if (!mayBe(VALUE_PART, code)) break
    if (code !== SPACE) end = at + 1
  }
  return end === start || end - start > MAX_PART_LENGTH ? -1 : end
}

function isKey(key: unknown): key is string {
  return typeof key === 'string' && endOfKey(key, 0) === key.length
}

function isValue(value: unknown): value is string {
  return typeof value === 'string' && endOfValue(value, 0) === value.length
}

// Where the kept members of the list that parseTracestate is reading lie in it. It never waits in between, so one
// set serves all calls, and finding duplicates costs no allocation.
const starts = new Int32Array(MAX_MEMBERS)
const keyEnds = new Int32Array(MAX_MEMBERS)
const ends = new Int32Array(MAX_MEMBERS)
const hashes = new Int32Array(MAX_MEMBERS)

/** Notes the member as the next one, unless one of the `kept` before it has the same key. */
function keepUnlessKnown(value: string, kept: number, start: number, keyEnd: number, end: number): boolean {
  let hash = keyEnd - start
  for (let i = start; i < keyEnd; i++) hash = Math.imul(hash, 31) + value.charCodeAt(i)
  hash |= 0
  for (let i = 0; i < kept; i++) {
    if (hashes[i] === hash && isSameKey(value, starts[i]!, keyEnds[i]!, start, keyEnd)) return false
  }
  starts[kept] = start
  keyEnds[kept] = keyEnd
  ends[kept] = end
  hashes[kept] = hash
  return true
}

function isSameKey(value: string, start: number, end: number, otherStart: number, otherEnd: number): boolean {
  if (end - start !== otherEnd - otherStart) return false
  for (let i = start, j = otherStart; i < end; i++, j++) {
    if (value.charCodeAt(i) !== value.charCodeAt(j)) return false
  }
  return true
}

// --- tracestate: a valid list as one string

/** The first `count` members of a list, as one list. */
function firstMembers(list: string, count: number): string {
  let end = -1
  for (let i = 0; i < count; i++) {
    end = list.indexOf(',', end + 1)
    if (end < 0) return list
  }
  return list.slice(0, end)
}

/** Whole members only, and the order of those that stay is not changed. */
function cut(list: string): string {
  const members = list.split(',')
  let length = list.length
  for (let i = members.length - 1; i >= 0 && length > TRACESTATE_LIMIT; i--) {
    const size = members[i]!.length
    if (size <= LONG_MEMBER_LENGTH) continue
    members.splice(i, 1)
    length -= size + 1
  }
  while (length > TRACESTATE_LIMIT) length -= members.pop()!.length + 1
  return members.join(',')
}

/**
 * The API's TraceState: immutable, and always a list that may be sent (§3.5). It is one string, `key=value` of
 * unique keys with `,` between and nothing else, because most requests only pass it on; who asks for a member
 * pays for the search.
 */
class TraceStateList implements TraceState {
  private readonly list: string

  /** @param list must be valid and canonical; it is not checked again. */
  constructor(list: string) {
    this.list = list
  }

  get(key: string): string | undefined {
    const at = this.find(key)
    if (at < 0) return undefined
    return this.list.slice(at + key.length + 1, this.endOfMember(at))
  }

  /**
   * With the member at the left end, whether it is new or changed. If there are 32 others, the right-most of them
   * is lost. A key or value that breaks the grammar changes nothing.
   */
  set(key: string, value: string): TraceState {
    if (!isKey(key) || !isValue(value)) return this
    const others = firstMembers(this.without(key), MAX_MEMBERS - 1)
    return new TraceStateList(others === '' ? `${key}=${value}` : `${key}=${value},${others}`)
  }

  unset(key: string): TraceState {
    const others = this.without(key)
    if (others === this.list) return this
    return others === '' ? emptyTraceState : new TraceStateList(others)
  }

  serialize(): string {
    return this.list
  }

  /** Where the member with this key starts, or -1. */
  private find(key: string): number {
    if (!isKey(key)) return -1
    let at = 0
    while (at < this.list.length) {
      if (this.list.charCodeAt(at + key.length) === EQUALS && this.list.startsWith(key, at)) return at
      at = this.endOfMember(at) + 1
    }
    return -1
  }

  private endOfMember(at: number): number {
    const comma = this.list.indexOf(',', at)
    return comma < 0 ? this.list.length : comma
  }

  private without(key: string): string {
    const at = this.find(key)
    if (at < 0) return this.list
    const end = this.endOfMember(at)
    if (end < this.list.length) return this.list.slice(0, at) + this.list.slice(end + 1)
    return this.list.slice(0, Math.max(0, at - 1))
  }
}

/** No members: what to start from when a trace has no state yet, `emptyTraceState.set('vendor', 'value')`. */
export const emptyTraceState: TraceState = new TraceStateList('')
