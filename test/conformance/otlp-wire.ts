/**
 * OTLP's trace messages read to the letter. A decoder that is made for work skips what it does not know and takes the last
 * of two values; here an unknown field, a field that stands twice, a text that is no UTF-8, an id of another length and a
 * number out of its range are errors. It reads no values: that is the decoder's part (`otlp-definition.ts`).
 */

/** What may stand under a field's number. `one` is a message, `text` is UTF-8, `id16` and `id8` are bytes of that length. */
type Kind = 'text' | 'bytes' | 'id16' | 'id8' | 'fixed64' | 'fixed32' | 'double' | 'bool' | 'int64' | 'uint32'

interface Field {
  readonly kind: Kind | { readonly message: string }
  readonly repeated?: boolean
  /** The largest value of an enumeration or of a field of bits. */
  readonly most?: number
}

const one = (message: string): Field => ({ kind: { message } })
const many = (message: string): Field => ({ kind: { message }, repeated: true })
const of = (kind: Kind, most?: number): Field => ({ kind, ...(most === undefined ? {} : { most }) })

const MESSAGES: Record<string, Record<number, Field>> = {
  ExportTraceServiceRequest: { 1: many('ResourceSpans') },
  ResourceSpans: { 1: one('Resource'), 2: many('ScopeSpans'), 3: of('text') },
  Resource: { 1: many('KeyValue'), 2: of('uint32') },
  ScopeSpans: { 1: one('InstrumentationScope'), 2: many('Span'), 3: of('text') },
  InstrumentationScope: { 1: of('text'), 2: of('text'), 3: many('KeyValue'), 4: of('uint32') },
  Span: {
    1: of('id16'),
    2: of('id8'),
    3: of('text'),
    4: of('id8'),
    5: of('text'),
    6: of('uint32', 5),
    7: of('fixed64'),
    8: of('fixed64'),
    9: many('KeyValue'),
    10: of('uint32'),
    11: many('Event'),
    12: of('uint32'),
    13: many('Link'),
    14: of('uint32'),
    15: one('Status'),
    16: of('fixed32', 0x3ff),
  },
  Event: { 1: of('fixed64'), 2: of('text'), 3: many('KeyValue'), 4: of('uint32') },
  Link: {
    1: of('id16'),
    2: of('id8'),
    3: of('text'),
    4: many('KeyValue'),
    5: of('uint32'),
    6: of('fixed32', 0x3ff),
  },
  Status: { 2: of('text'), 3: of('uint32', 2) },
  KeyValue: { 1: of('text'), 2: one('AnyValue') },
  AnyValue: {
    1: of('text'),
    2: of('bool', 1),
    3: of('int64'),
    4: of('double'),
    5: one('ArrayValue'),
    6: one('KeyValueList'),
    7: of('bytes'),
  },
  ArrayValue: { 1: many('AnyValue') },
  KeyValueList: { 1: many('KeyValue') },
}

const WIRE_TYPES: Record<Kind, number> = {
  bool: 0,
  int64: 0,
  uint32: 0,
  fixed64: 1,
  double: 1,
  text: 2,
  bytes: 2,
  id16: 2,
  id8: 2,
  fixed32: 5,
}

const utf8 = new TextDecoder('utf-8', { fatal: true })

/** Throws, and says where, unless these bytes are an ExportTraceServiceRequest with nothing wrong in it. */
export function checkRequest(request: Uint8Array): void {
  checkMessage(request, 'ExportTraceServiceRequest', '')
}

function checkMessage(bytes: Uint8Array, message: string, path: string): void {
  const fields = MESSAGES[message]!
  const seen = new Set<number>()
  let at = 0
  const varint = (where: string): bigint => {
    let value = 0n
    for (let index = 0n; index < 10n; index++) {
      const byte = bytes[at++]
      if (byte === undefined) throw new Error(`${where}: the message ends in a number`)
      value |= BigInt(byte & 0x7f) << (7n * index)
      if (byte >= 0x80) continue
      if (value >= 2n ** 64n) throw new Error(`${where}: a number of more than 64 bits`)
      return value
    }
    throw new Error(`${where}: a number of more than ten bytes`)
  }
  const take = (size: number, where: string): Uint8Array => {
    if (at + size > bytes.length) throw new Error(`${where}: ${size} bytes do not fit into the message`)
    return bytes.subarray(at, (at += size))
  }
  while (at < bytes.length) {
    const tag = Number(varint(`${path}/${message}`))
    const field = fields[Math.floor(tag / 8)]
    const where = `${path}/${message}.${Math.floor(tag / 8)}`
    if (field === undefined) throw new Error(`${where}: no such field`)
    const { kind } = field
    const wireType = typeof kind === 'string' ? WIRE_TYPES[kind] : 2
    if (tag % 8 !== wireType) throw new Error(`${where}: wire type ${tag % 8} instead of ${wireType}`)
    // The fields of a value exclude each other.
    const slot = message === 'AnyValue' ? 0 : tag
    if (field.repeated !== true && seen.has(slot)) throw new Error(`${where}: stands twice`)
    seen.add(slot)
    if (wireType === 0) {
      const value = varint(where)
      const most = field.most ?? (kind === 'uint32' ? 2 ** 32 - 1 : Infinity)
      if (most !== Infinity && value > BigInt(most)) throw new Error(`${where}: ${value} is above ${most}`)
    } else if (wireType === 1) {
      take(8, where)
    } else if (wireType === 5) {
      const word = Buffer.from(take(4, where)).readUInt32LE()
      if (field.most !== undefined && word > field.most) throw new Error(`${where}: ${word} is above it`)
    } else {
      const length = Number(varint(where))
      const body = take(length, where)
      if (typeof kind !== 'string') checkMessage(body, kind.message, where)
      else if (kind === 'text') utf8.decode(body)
      else if (kind === 'id16' && length !== 16) throw new Error(`${where}: an id of ${length} bytes`)
      else if (kind === 'id8' && length !== 8) throw new Error(`${where}: an id of ${length} bytes`)
    }
  }
}
