import { SamplingDecision } from '@opentelemetry/api'
import { EventEmitter } from 'node:events'
import { describe, expect, test } from 'vitest'
import { readConfig, type StartOptions } from '../../packages/core/src/config.ts'
import { b3Propagator } from '../../packages/core/src/propagation.ts'
import { processor, said } from './engine.ts'
import { EVERY_VARIABLE, read, type Environment } from './variables.ts'

describe('an option', () => {
  const deciding = { shouldSample: () => ({ decision: SamplingDecision.RECORD }), toString: () => 'Mine' }
  const exporting = { export() {}, shutdown: async () => {} }
  const PROCESSOR_METHODS = ['forceFlush', 'onEnd', 'onStart', 'shutdown']

  test('that is unknown is a TypeError that names it and those that there are', () => {
    expect(() => read({}, { endpiont: 'http://c' } as StartOptions)).toThrow(
      expect.objectContaining({
        name: 'TypeError',
        message: expect.stringMatching(/^start\(\): expected .*endpoint.*received .*"endpiont"/),
      }),
    )
    expect(() => read({}, { toString: 1 } as unknown as StartOptions)).toThrow(TypeError)
  })

  test('is one of an object of any class, and none of a Map', () => {
    class Delays {
      scheduledDelayMillis = 20
    }
    expect(read({}, { batch: new Delays() }).batch.scheduledDelayMillis).toBe(20)
    expect(() => read({}, new Map([['endpoint', 'http://c']]) as StartOptions)).toThrow(
      /^start\(\): expected an object of options, received an object of Map; example: /,
    )
  })

  test('is as right or wrong by the getter of a class', () => {
    class Right {
      get serviceName() {
        return 'orders'
      }
    }
    class Wrong {
      get endpoint() {
        return 'collector:4318'
      }
    }
    expect(read({}, new Right()).resource.attributes['service.name']).toBe('orders')
    expect(() => read({}, new Wrong())).toThrow(
      /^start\(\): expected endpoint to be an http or https URL, received "collector:4318"; example: /,
    )
  })

  test('that is unknown in an object of a class of options is named', () => {
    class Settings {
      serviceName = 'orders'
      endpiont = 'http://c'
    }
    expect(() => read({}, new Settings())).toThrow(/, received an unknown one, "endpiont"; example: /)
  })

  test('is none of an object that is something else', () => {
    expect(() => read({}, new EventEmitter() as StartOptions)).toThrow(
      /^start\(\): expected an object of options, received an object of EventEmitter; example: /,
    )
  })

  test.each([
    ['RegExp', /health/],
    ['Date', new Date(0)],
    ['Promise', Promise.resolve({ serviceName: 'orders' })],
    ['Error', new Error('no settings')],
  ])('is none of a %s, which has no options in it', (name, given) => {
    const received = new RegExp(`, received an object of ${name}; example: `)
    expect(() => read({}, given as StartOptions)).toThrow(received)
    expect(() => read({}, { batch: given as object })).toThrow(received)
    expect(() => read({}, { resource: given as never })).toThrow(received)
  })

  test('of a function or a class whose name is a symbol is shown', () => {
    const named = <T extends object>(value: T) =>
      Object.defineProperty(value, 'name', { value: Symbol('own') })
    const own = { constructor: named(() => {}) }
    expect(() => read({}, { serviceName: named(() => {}) as never })).toThrow(
      /received a function \(Symbol\(own\)\);/,
    )
    expect(() => read({}, { serviceName: own as never })).toThrow(/received an object of Symbol\(own\);/)
  })

  test('for a share that is none has a share for an example', () => {
    expect(() => read({}, { sampling: 10 })).toThrow(/, received 10; example: \{ sampling: 0\.1 \}$/)
  })

  test('that is no propagator is told of one that we have', () => {
    const given = { propagator: 'b3' } as unknown as StartOptions
    expect(() => read({}, given)).toThrow(/; example: \{ propagator: b3Propagator \}$/)
    expect(read({}, { propagator: b3Propagator }).propagator).toBe(b3Propagator)
  })

  test.each<[string, unknown]>([
    ['serviceName', ''],
    ['resource', 'orders'],
    ['endpoint', 'localhost:4318'],
    ['headers', { a: 1 }],
    ['headers', { 'bad name': 'b' }],
    ['headers', { a: 'line\nbreak' }],
    ['headers', new Headers({ authorization: 'Bearer key' })],
    ['headers', new Map([['authorization', 'Bearer key']])],
    ['resource', new Map([['team', 'shop']])],
    ['tls', new Map()],
    ['batch', new Map([['maxQueueSize', 5]])],
    ['spanLimits', new Map()],
    ['protocol', 'grpc'],
    ['compression', 'br'],
    ['timeoutMillis', -1],
    ['timeoutMillis', '10'],
    ['tls', 'ca.pem'],
    ['batch', 512],
    ['spanLimits', [128]],
    ['exporter', {}],
    ['spanProcessors', {}],
    ['exporter', { export() {} }],
    ['exporter', { shutdown: async () => {} }],
    ['exporter', { ...exporting, shutdown: true }],
    ['spanProcessors', [{}]],
    ...PROCESSOR_METHODS.map((method): [string, unknown] => [
      'spanProcessors',
      [processor({}), { ...processor({}), [method]: undefined }],
    ]),
    ['sampler', 'always_on'],
    ['sampling', 1.5],
    ['sampling', Number.NaN],
    ['propagator', { inject() {}, fields: () => [] }],
    ['propagator', null],
    ['idGenerator', { generateTraceId() {} }],
    ['signals', 'no'],
    ['disabled', 'true'],
  ])(
    'of the wrong shape is a TypeError with what was expected, received, and an example: %s',
    (key, value) => {
      expect(() => read({}, { [key]: value })).toThrow(
        expect.objectContaining({
          name: 'TypeError',
          message: expect.stringMatching(
            new RegExp(`^start\\(\\): expected ${key} to be .*, received .*; example: \\{ ${key}: .* \\}$`),
          ),
        }),
      )
    },
  )

  test('that is an exporter or a processor of one’s own has what is always called, and no more', () => {
    expect(read({}, { exporter: exporting }).exporters).toEqual([exporting])
    const own = processor({})
    expect(Object.keys(own).toSorted()).toEqual(PROCESSOR_METHODS)
    const given = { spanProcessors: [own] } as const
    expect(read({}, given).spanProcessors).toEqual([own])
    expect(() => read({}, { exporter: { export() {} } as never })).toThrow('with export() and shutdown()')
    expect(() => read({}, { spanProcessors: [{ onEnd() {} }] as never })).toThrow(
      'with onStart(), onEnd(), forceFlush() and shutdown()',
    )
  })

  test.each<[string, string, unknown]>([
    ['tls', 'ca', 'ca.pem'],
    ['tls', 'ca', true],
    ['tls', 'key', '-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----'],
    ['tls', 'cert', Buffer.from('c2VjcmV0')],
    ['batch', 'maxQueueSize', 0],
    ['batch', 'maxExportBatchSize', 1.5],
    ['batch', 'scheduledDelayMillis', '1s'],
    ['batch', 'exportTimeoutMillis', Infinity],
    ['spanLimits', 'attributeCountLimit', -1],
    ['spanLimits', 'attributeValueLengthLimit', Number.NaN],
    ['spanLimits', 'eventCountLimit', null],
    ['spanLimits', 'linkCountLimit', '1'],
    ['spanLimits', 'attributePerEventCountLimit', {}],
    ['spanLimits', 'attributePerLinkCountLimit', 2 ** 60],
  ])('with a part of the wrong shape is one too, without a secret: %s.%s', (key, part, value) => {
    expect(() => read({}, { [key]: { [part]: value } })).toThrow(
      expect.objectContaining({
        name: 'TypeError',
        message: expect.stringMatching(
          new RegExp(
            `^start\\(\\): ${key}: expected ${part} to be .*, received (?!.*c2VjcmV0).*; example: \\{ ${key}: \\{ ${part}: .* \\} \\}$`,
          ),
        ),
      }),
    )
    expect(() => read({}, { [key]: { [`${part}s`]: value } })).toThrow(/received an unknown one/)
  })

  test('says all that a variable says, and wins over it', () => {
    const reports = said()
    const options = {
      compression: 'gzip',
      timeoutMillis: 1,
      batch: { maxQueueSize: 2, maxExportBatchSize: 1, scheduledDelayMillis: 3, exportTimeoutMillis: 4 },
      spanLimits: {
        attributeCountLimit: 5,
        attributeValueLengthLimit: 6,
        eventCountLimit: 7,
        linkCountLimit: 8,
        attributePerEventCountLimit: 9,
        attributePerLinkCountLimit: 0,
      },
    } satisfies StartOptions
    const other = Object.fromEntries(
      EVERY_VARIABLE.filter((name) => /LIMIT$|_BSP_|TIMEOUT$/.test(name)).map((name) => [name, '77']),
    )
    for (const environment of [{}, { ...other, OTEL_EXPORTER_OTLP_COMPRESSION: 'none' }]) {
      const { otlp, batch, limits } = read(environment, options)
      expect(otlp).toMatchObject({ compression: 'gzip', timeoutMillis: 1 })
      expect([batch, limits]).toEqual([options.batch, options.spanLimits])
    }
    expect(reports.lines).toEqual([])
  })

  test('says whether there are spans, and wins over the variable', () => {
    const isDisabled = (environment: Environment, disabled?: boolean) =>
      read(environment, { disabled }).isDisabled
    expect([isDisabled({}), isDisabled({}, true), isDisabled({}, false)]).toEqual([false, true, false])
    const off = { OTEL_SDK_DISABLED: 'true' }
    expect([isDisabled(off), isDisabled(off, true), isDisabled(off, false)]).toEqual([true, true, false])
  })

  test('leaves what it does not say to the variables', () => {
    const { batch, limits, otlp } = read(
      {
        OTEL_BSP_SCHEDULE_DELAY: '1',
        OTEL_SPAN_LINK_COUNT_LIMIT: '2',
        OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT: '3',
      },
      {
        batch: { maxQueueSize: 100, exportTimeoutMillis: 2 ** 40 },
        spanLimits: { attributeValueLengthLimit: Infinity, eventCountLimit: undefined },
        timeoutMillis: 2 ** 40,
      },
    )
    expect(batch).toEqual({
      maxQueueSize: 100,
      maxExportBatchSize: 100,
      scheduledDelayMillis: 1,
      exportTimeoutMillis: 2 ** 31 - 1,
    })
    expect(limits).toMatchObject({
      linkCountLimit: 2,
      attributeValueLengthLimit: Infinity,
      eventCountLimit: 128,
    })
    expect(otlp.timeoutMillis).toBe(2 ** 31 - 1)
  })

  test('of batches that the queue cannot hold is a TypeError where both are given, else it is said once', () => {
    expect(() => read({}, { batch: { maxQueueSize: 10, maxExportBatchSize: 20 } })).toThrow(
      /^start\(\): batch: expected maxExportBatchSize .* 10, received 20; example: \{ batch: /,
    )
    expect(read({}, { batch: { maxQueueSize: 10, maxExportBatchSize: 10 } }).batch.maxExportBatchSize).toBe(
      10,
    )
    const reports = said()
    const { batch } = read({ OTEL_BSP_MAX_QUEUE_SIZE: '10' }, { batch: { maxExportBatchSize: 20 } })
    expect(batch.maxExportBatchSize).toBe(10)
    expect(reports.lines).toEqual([
      'throughline: maxExportBatchSize is 20, more than the queue holds: 10 is used',
    ])
  })

  test.each<[StartOptions, string]>([
    [{ sampler: deciding, sampling: 0.1 }, 'sampler or sampling'],
    [{ exporter: exporting, spanProcessors: [] }, 'exporter or spanProcessors'],
  ])('that says what another says already is a TypeError that names both: %o', (options, both) => {
    expect(() => read({}, options)).toThrow(
      expect.objectContaining({
        name: 'TypeError',
        message: expect.stringMatching(
          new RegExp(`^start\\(\\): expected ${both}, received both; example: \\{ .* \\}$`),
        ),
      }),
    )
    const first = Object.fromEntries(
      Object.entries(options).map(([key, value], at) => [key, at === 0 ? value : undefined]),
    )
    expect(() => read({}, first)).not.toThrow()
  })

  test('that is undefined is as good as not given; no object at all is a TypeError', () => {
    expect(read({}, { endpoint: undefined } as unknown as StartOptions).otlp.isDefault).toBe(true)
    for (const value of [null, 'x', []]) expect(() => readConfig(value as never)).toThrow(TypeError)
  })
})
