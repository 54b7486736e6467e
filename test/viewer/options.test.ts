import { collect, receive, toOtlpJson, waterfall } from '@throughline/viewer'
import { describe, expect, it } from 'vitest'

/** As JavaScript calls it, where no compiler has looked. */
const untyped = { collect, receive, toOtlpJson, waterfall } as Record<
  string,
  (...given: unknown[]) => unknown
>

/** The function, what it is given, and what it says. */
const mistakes: [name: string, given: unknown[], said: string][] = [
  [
    'collect',
    [{ onTraces: () => {} }],
    'options among onTrace, quiet, maxTraces, maxSpansPerTrace, maxSpans, received an unknown one, "onTraces"',
  ],
  ['collect', [null], 'an object of options, received null'],
  ['collect', [() => {}], 'an object of options, received a function'],
  ['collect', [Promise.resolve({})], 'an object of options, received an object'],
  ['collect', [{ onTrace: 'print' }], 'onTrace to be a function, received "print"'],
  ['collect', [{ quiet: '500' }], 'quiet to be a whole number from 0 to 2147483647, received "500"'],
  ['collect', [{ quiet: Infinity }], 'quiet to be a whole number from 0 to 2147483647, received Infinity'],
  ['collect', [{ maxSpans: NaN }], 'maxSpans to be a number of at least 1, received NaN'],
  ['receive', [], 'an object of options, received undefined'],
  ['receive', [{ port: 0 }], 'onSpans to be a function, received none'],
  [
    'receive',
    [{ onSpan: () => {} }],
    'options among onSpans, port, host, maxBytes, received an unknown one, "onSpan"',
  ],
  [
    'receive',
    [{ onSpans: () => {}, port: '4318' }],
    'port to be a whole number from 0 to 65535, received "4318"',
  ],
  ['receive', [{ onSpans: () => {}, host: null }], 'host to be an address, received null'],
  [
    'receive',
    [{ onSpans: () => {}, maxBytes: [1] }],
    'maxBytes to be a number of at least 1, received an array',
  ],
  ['waterfall', [{ spans: [] }], 'a list of spans, received an object; example: waterfall(trace.spans)'],
  ['waterfall', [[], 80], 'an object of options, received 80'],
  [
    'waterfall',
    [[], { width: '80' }],
    'width to be a number of columns, received "80"; example: { width: 80 }',
  ],
  ['waterfall', [[], { colour: true }], 'options among width, color, received an unknown one, "colour"'],
  ['toOtlpJson', [{ spans: [] }], 'a list of spans, received an object; example: toOtlpJson(trace.spans)'],
]

describe('the viewer from code', () => {
  it.each(mistakes)('%s%j says what was expected', async (name, given, said) => {
    const call = async () => untyped[name]?.(...given)
    const error = await call().then(
      () => undefined,
      (reason: unknown) => reason,
    )
    expect(error).toBeInstanceOf(TypeError)
    expect(String(error)).toContain(`TypeError: ${name}(): expected ${said}`)
    expect(String(error)).toContain('; example: ')
  })

  it('takes options that are undefined, and those of a class', async () => {
    class Options {
      quiet = 1
      onTrace = undefined
    }
    expect(() => collect(new Options()).close()).not.toThrow()
    const receiver = await receive({ port: 0, host: undefined, onSpans: () => {} })
    await receiver.close()
  })
})
