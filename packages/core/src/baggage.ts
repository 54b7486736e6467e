import {
  baggageEntryMetadataFromString,
  propagation,
  type Baggage,
  type BaggageEntry,
} from '@opentelemetry/api'
import { combineFields, trimBlanks } from './trace-context.ts'

// The header `baggage` ⇄ the API's Baggage, by W3C Baggage (https://www.w3.org/TR/baggage/). Values are the
// user's and may be any text; keys, and the properties after `;`, go over the wire as they are.

/** The grammar's `list-member 0*179(…)`. All must be passed on up to 64. */
const MAX_MEMBERS = 180

/** All must be passed on up to this many bytes, commas included; beyond it a header is a risk to the request. */
const MAX_BYTES = 8192

const COMMA = 0x2c
const SEMICOLON = 0x3b
const PERCENT = 0x25

/** May stand in a key: RFC 9110 `tchar`. */
const KEY_PART = 1
/** May stand in a value as it is: `baggage-octet` but `%`, which always announces an encoded byte. */
const VALUE_PART = 2
/** May stand in the properties as it is: `baggage-octet`, blanks, and `;` between two properties. */
const PROPERTY_PART = 4

const roles = new Uint8Array(128)
for (let code = 0x21; code < 0x7f; code++) {
  if (code !== COMMA && code !== SEMICOLON && code !== 0x22 && code !== 0x5c) {
    roles[code] = code === PERCENT ? PROPERTY_PART : VALUE_PART | PROPERTY_PART
  }
}
for (const char of '\t ;') roles[char.charCodeAt(0)]! |= PROPERTY_PART
for (const char of "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") {
  roles[char.charCodeAt(0)]! |= KEY_PART
}

/** What decoding puts in place of bytes that are not UTF-8. */
const REPLACEMENT = '\ufffd'

/** The original bytes of values with such: encoding their decoded text again would send different bytes, and more. */
const bytesThatCame = new WeakMap<BaggageEntry, Buffer>()

/**
 * Reads the `baggage` header of a carrier: a string, a Buffer of latin1, or an array of these, combined in order
 * (RFC 9110 §5.3).
 *
 * Values are percent-decoded as UTF-8: bytes that are not UTF-8 become U+FFFD, a `%` that announces no byte stays
 * as it is. What follows the first `;` of a member is its metadata, unchanged. A member without `=`, or whose key
 * is not a token, is left out; the others are kept, since they do not depend on each other. If a key comes twice,
 * the last one counts: the API's Baggage holds one value per key.
 *
 * Up to 180 members and 8192 characters are kept; a member that does not fit is left out whole.
 *
 * @returns undefined if there is no member.
 */
export function parseBaggage(value: unknown): Baggage | undefined {
  const list = combineFields(value)
  if (list === undefined) return undefined
  // Without a prototype, because `__proto__` is a token like any other.
  const entries: Record<string, BaggageEntry> = Object.create(null)
  let members = 0
  let size = 0
  let start = 0
  while (start < list.length && members < MAX_MEMBERS) {
    const comma = list.indexOf(',', start)
    const end = comma < 0 ? list.length : comma
    const member = trimBlanks(list, start, end)
    start = end + 1
    if (size + member.length > MAX_BYTES) continue
    if (!readMember(member, entries)) continue
    members++
    size += member.length + 1
  }
  return members === 0 ? undefined : propagation.createBaggage(entries)
}

/**
 * Writes the `baggage` header, or `''` when there is nothing to send.
 *
 * In a value, `%` and what may not stand in it are percent-encoded as UTF-8, and nothing more: a header that was within the
 * limits when it came in stays within them. Bytes that came in and are not UTF-8 go out as they were, while their entry is in
 * the baggage and holds what they were read as. Metadata is already in the header's form and goes out as it is, but for
 * characters that no header may hold. An entry whose key is not a token has no form in this header and is left out; so is one
 * whose value is not a string.
 *
 * Up to 180 members and 8192 bytes are sent; a member that does not fit is left out whole.
 */
export function formatBaggage(baggage: Baggage): string {
  let list = ''
  let members = 0
  for (const [key, entry] of baggage.getAllEntries()) {
    if (members === MAX_MEMBERS) break
    const member = writeMember(key, entry)
    if (member === '') continue
    // The header is ASCII, so a character is a byte.
    const size = list === '' ? member.length : list.length + 1 + member.length
    if (size > MAX_BYTES) continue
    list = list === '' ? member : `${list},${member}`
    members++
  }
  return list
}

/** The entry as a member; `''` if it has no form in the header, or cannot be read. */
function writeMember(key: unknown, entry: BaggageEntry): string {
  try {
    const { value, metadata } = entry
    if (typeof key !== 'string' || typeof value !== 'string') return ''
    if (key === '' || !consistsOf(KEY_PART, key)) return ''
    const properties: unknown = metadata?.toString()
    const member = `${key}=${writeValue(entry, value)}`
    return typeof properties === 'string' && properties !== ''
      ? `${member};${encode(PROPERTY_PART, properties)}`
      : member
  } catch {
    return ''
  }
}

function writeValue(entry: BaggageEntry, value: string): string {
  const bytes = value.includes(REPLACEMENT) ? bytesThatCame.get(entry) : undefined
  return bytes?.toString() === value ? encodeBytes(VALUE_PART, bytes) : encode(VALUE_PART, value)
}

/** Adds the entry that a member, without the blanks around it, stands for. False if it is invalid. */
function readMember(member: string, entries: Record<string, BaggageEntry>): boolean {
  const semicolon = member.indexOf(';')
  const end = semicolon < 0 ? member.length : semicolon
  const equals = member.indexOf('=')
  if (equals < 0) return false
  // An `=` that belongs to a property has a `;` before it, which no token has.
  const key = trimBlanks(member, 0, equals)
  if (key === '' || !consistsOf(KEY_PART, key)) return false
  const entry = readValue(trimBlanks(member, equals + 1, end))
  const metadata = trimBlanks(member, end + 1, member.length)
  if (metadata !== '') entry.metadata = baggageEntryMetadataFromString(metadata)
  entries[key] = entry
  return true
}

function readValue(text: string): BaggageEntry {
  if (!text.includes('%')) return { value: text }
  const bytes = decode(text)
  const entry = { value: bytes.toString() }
  if (entry.value.includes(REPLACEMENT)) bytesThatCame.set(entry, bytes)
  return entry
}

function mayBe(role: number, code: number): boolean {
  return code < 128 && (roles[code]! & role) !== 0
}

function consistsOf(role: number, text: string): boolean {
  for (let i = 0; i < text.length; i++) if (!mayBe(role, text.charCodeAt(i))) return false
  return true
}

/** Not `encodeURIComponent`: it encodes more than it must, and throws on half a surrogate pair. */
function encode(role: number, text: string): string {
  return consistsOf(role, text) ? text : encodeBytes(role, Buffer.from(text))
}

function encodeBytes(role: number, bytes: Buffer): string {
  let encoded = ''
  for (const byte of bytes) {
    if (mayBe(role, byte)) encoded += String.fromCharCode(byte)
    else encoded += `%${byte.toString(16).padStart(2, '0').toUpperCase()}`
  }
  return encoded
}

/** Not `decodeURIComponent`: it throws on values that must be kept. */
function decode(text: string): Buffer {
  // In place: what is written never overtakes what is read.
  const bytes = Buffer.from(text)
  let length = 0
  for (let i = 0; i < bytes.length; i++) {
    const byte = bytes[i] === PERCENT ? encodedByte(bytes, i) : -1
    if (byte >= 0) i += 2
    bytes[length++] = byte >= 0 ? byte : bytes[i]!
  }
  return bytes.subarray(0, length)
}

/** The byte that the `%` at `at` announces, or less than 0 if two hex digits do not follow. */
function encodedByte(bytes: Buffer, at: number): number {
  if (at + 2 >= bytes.length) return -1
  const high = hexDigit(bytes[at + 1]!)
  const low = hexDigit(bytes[at + 2]!)
  return high < 0 || low < 0 ? -1 : high * 16 + low
}

/** 0 to 15, or -1; both cases count here. */
function hexDigit(code: number): number {
  if (code >= 0x30 && code <= 0x39) return code - 0x30
  const lower = code | 0x20
  return lower >= 0x61 && lower <= 0x66 ? lower - 0x57 : -1
}
