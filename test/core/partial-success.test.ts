import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  decodePartialSuccess,
  parsePartialSuccess,
  readPartialSuccess,
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
    for (const answer of ['{}', '{"partialSuccess":{}}', '{"partialSuccess":null}', '{"later":1}'])
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
