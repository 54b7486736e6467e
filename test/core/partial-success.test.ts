import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  decodePartialSuccess,
  parsePartialSuccess,
  readPartialSuccess,
  readRefusal,
} from '../../packages/core/src/otlp/partial-success.ts'
import { encodeResponse } from '../otlp-definition.ts'

describe("a collector's answer", () => {
  it('is read when it refused spans or has something to say', () => {
    const refused = { rejectedSpans: 3, errorMessage: 'trop de spans: é' }
    expect(decodePartialSuccess(encodeResponse({ partialSuccess: refused }))).toEqual(refused)
    expect(
      parsePartialSuccess(JSON.stringify({ partialSuccess: { ...refused, rejectedSpans: '3' } })),
    ).toEqual(refused)
    expect(parsePartialSuccess(JSON.stringify({ partialSuccess: refused }))).toEqual(refused)
    const warning = { errorMessage: 'slow down' }
    expect(decodePartialSuccess(encodeResponse({ partialSuccess: warning }))).toEqual({
      rejectedSpans: 0,
      ...warning,
    })
    expect(parsePartialSuccess(JSON.stringify({ partialSuccess: warning }))).toEqual({
      rejectedSpans: 0,
      ...warning,
    })
  })

  it('is a full success when it is empty', () => {
    expect(decodePartialSuccess(new Uint8Array(0))).toBeUndefined()
    expect(decodePartialSuccess(encodeResponse({ partialSuccess: {} }))).toBeUndefined()
    expect(decodePartialSuccess(encodeResponse({ partialSuccess: { rejectedSpans: -1 } }))).toBeUndefined()
    const negative = '{"partialSuccess":{"rejectedSpans":"-1"}}'
    for (const answer of ['{}', '{"partialSuccess":{}}', '{"partialSuccess":null}', '{"later":1}', negative])
      expect(parsePartialSuccess(answer)).toBeUndefined()
  })

  it.each(['', 'null', '[]', '"x"', '1', '<html>', '{"partialSuccess":', '{"partialSuccess":"x"}'])(
    'is none where it is no such message: %s',
    (answer) => {
      expect(() => parsePartialSuccess(answer)).toThrow(SyntaxError)
    },
  )

  const NAMED = { rejectedSpans: 3, errorMessage: 'm' }
  const written = {
    JSON: Buffer.from(JSON.stringify({ partialSuccess: NAMED })),
    protobuf: Buffer.from(encodeResponse({ partialSuccess: NAMED })),
  }

  it.each([
    ['application/json', 'JSON', 'protobuf'],
    ['Application/JSON; charset=utf-8', 'JSON', 'protobuf'],
    ['application/x-protobuf', 'protobuf', 'JSON'],
    ['text/plain', 'JSON', 'JSON'],
    ['text/plain', 'JSON', 'protobuf'],
    [undefined, 'JSON', 'protobuf'],
    ['text/plain', 'protobuf', 'protobuf'],
    [undefined, 'JSON', 'JSON'],
    [undefined, 'protobuf', 'protobuf'],
  ] as const)('is read as what it says it is: %s, %s to a request in %s', (type, form, ours) => {
    expect(readPartialSuccess(written[form], type, ours)).toEqual(NAMED)
  })

  it('that is none is said to be, in a few words', () => {
    const page = Buffer.from(`<html>${'x'.repeat(1000)}`)
    expect(() => readPartialSuccess(page, 'text/html', 'protobuf')).toThrow(
      /^expected an ExportTraceServiceResponse as protobuf, received text\/html: "<html>x{94}…"$/,
    )
    expect(() => readPartialSuccess(Buffer.from('no.'), undefined, 'JSON')).toThrow(
      /^expected an ExportTraceServiceResponse as JSON, received "no\."$/,
    )
  })

  it('skips fields of later versions', () => {
    const known = encodeResponse({ partialSuccess: { rejectedSpans: 7, errorMessage: 'm' } })
    const unknown = Buffer.from([
      0x98, 0x01, 5, 0xa2, 0x01, 2, 1, 2, 0xad, 0x01, 1, 2, 3, 4, 0xb1, 0x01, 1, 2, 3, 4, 5, 6, 7, 8,
    ])
    expect(decodePartialSuccess(Buffer.concat([unknown, known, unknown]))).toEqual({
      rejectedSpans: 7,
      errorMessage: 'm',
    })
  })

  it('may be garbage', () => {
    const known = encodeResponse({ partialSuccess: { rejectedSpans: 300, errorMessage: 'm' } })
    // A count that runs over the end of the message it is in.
    expect(() => decodePartialSuccess(Uint8Array.of(0x0a, 2, 0x08, 0xac, 2))).toThrow(SyntaxError)
    // A field that there is no number of, and one of a later version that is cut off.
    for (const field of [
      [0x00, 1],
      [0xa2, 0x01, 9, 1],
      [0xad, 0x01, 1],
    ])
      expect(() => decodePartialSuccess(Buffer.concat([known, Uint8Array.from(field)]))).toThrow(SyntaxError)
    for (let length = 1; length < known.length; length++) {
      expect(() => decodePartialSuccess(known.subarray(0, length))).toThrow(SyntaxError)
    }
    const readOrNot = (read: () => unknown) => {
      try {
        read()
      } catch (error) {
        expect(error).toBeInstanceOf(SyntaxError)
      }
    }
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 60 }), fc.string(), (bytes, answer) => {
        readOrNot(() => decodePartialSuccess(bytes))
        readOrNot(() => decodePartialSuccess(Buffer.concat([known.subarray(0, 2), bytes])))
        readOrNot(() => parsePartialSuccess(answer))
      }),
      { numRuns: 2000 },
    )
  })
})

describe('what a collector says with a refusal', () => {
  // A google.rpc.Status { code = 1, message = 2, details = 3 }, with one detail.
  const status = Buffer.from([0x08, 16, 0x12, 7, ...Buffer.from('no: é!'), 0x1a, 2, 1, 2])
  const json = Buffer.from(JSON.stringify({ code: 16, message: 'no: é!', details: [{}] }))

  it.each([
    ['application/x-protobuf', status, 'JSON'],
    ['Application/JSON; charset=utf-8', json, 'protobuf'],
    [undefined, status, 'protobuf'],
    [undefined, json, 'JSON'],
    ['application/octet-stream', status, 'protobuf'],
    ['text/plain', Buffer.from('\r\n no: é! \r\nmore'), 'protobuf'],
    ['TEXT/Plain; charset=utf-8', Buffer.from('no: é!'), 'protobuf'],
  ] as const)('is read as what it says it is: %s', (type, body, form) => {
    expect(readRefusal(body, type, form)).toBe('no: é!')
  })

  it.each([
    ['application/x-protobuf', json],
    ['application/json', status],
    ['application/json', Buffer.from('null')],
    ['application/json', Buffer.from('{"message":1}')],
    ['application/x-protobuf', Buffer.alloc(0)],
    ['application/x-protobuf', status.subarray(0, 9)],
    ['application/x-protobuf', Buffer.concat([status, Buffer.of(7)])],
    ['text/html', Buffer.from('Forbidden')],
    ['text/xml', Buffer.from('<?xml version="1.0"?>')],
    ['text/plain', Buffer.from('<html>')],
    ['text/plain', Buffer.from(' \n')],
    [undefined, Buffer.from('Forbidden')],
  ] as const)('is nothing where it is no message of that kind: %s', (type, body) => {
    expect(readRefusal(body, type, 'protobuf')).toBe('')
  })

  it('may be garbage', () => {
    fc.assert(
      fc.property(
        fc.uint8Array({ maxLength: 60 }),
        fc.constantFrom('application/json', 'text/plain', undefined),
        (bytes, type) => {
          expect(readRefusal(Buffer.from(bytes), type, 'protobuf')).toBeTypeOf('string')
        },
      ),
    )
  })
})
