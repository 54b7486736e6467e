import {
  context,
  createTraceState,
  defaultTextMapGetter,
  defaultTextMapSetter,
  ROOT_CONTEXT,
  SamplingDecision,
  SpanKind,
  trace,
  TraceFlags,
  type Attributes,
  type ContextManager,
  type Span as ApiSpan,
  type SpanContext,
  type TracerProvider as ApiTracerProvider,
} from '@opentelemetry/api'
import { start, traceRequest } from '@throughline/core'
import { randomFillSync } from 'node:crypto'
import { createServer } from 'node:http'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { activeContext, root, runIn, suppressTracing, withSpan } from '../../packages/core/src/context.ts'
import { registeredProvider } from '../../packages/core/src/current.ts'
import { randomIds, randomWords } from '../../packages/core/src/ids.ts'
import { encodeProtobuf } from '../../packages/core/src/otlp/encode.ts'
import { encodeJson } from '../../packages/core/src/otlp/json.ts'
import { b3Propagator, w3cPropagator } from '../../packages/core/src/propagation.ts'
import {
  alwaysOff,
  alwaysOn,
  parentBased,
  probability,
  rootDecisionOf,
  traceIdRatio,
  type Sampler,
} from '../../packages/core/src/sampling.ts'
import type { ReadableSpan, Span as OurSpan } from '../../packages/core/src/span.ts'
import { ask, listening } from '../contract/server.ts'
import { decodeRequest } from '../otlp-definition.ts'
import { record } from '../recording.ts'
import { engine, LazyOptions, LIMITS, processor } from './engine.ts'

// What the seams start goes a shorter way than what an app starts by the API, and asks the API less often. Nobody is to notice.

const TRACE = '0af7651916cd43dd8448eb211c80319c'
const PARENT = 'b7ad6b7169203331'

const remote = (traceFlags: number, state?: string): SpanContext => ({
  traceId: TRACE,
  spanId: PARENT,
  traceFlags,
  isRemote: true,
  ...(state === undefined ? {} : { traceState: createTraceState(state) }),
})

const ATTRIBUTES = { 'url.path': '/', n: 1 }

const options = (build: () => Attributes = () => ({ ...ATTRIBUTES })) =>
  new LazyOptions(SpanKind.SERVER, build)

describe('a span of a seam is the same as one that is started by the API', () => {
  const everySecond: Sampler = {
    shouldSample: (_context, traceId) => ({
      decision: traceId === TRACE ? SamplingDecision.RECORD : SamplingDecision.RECORD_AND_SAMPLED,
      attributes: { 'app.sampled': true },
    }),
    toString: () => 'of the app',
  }
  const samplers: [string, Sampler][] = [
    ['parentBased(alwaysOn)', parentBased(alwaysOn)],
    ['parentBased(alwaysOff)', parentBased(alwaysOff)],
    ['parentBased(probability(1))', parentBased(probability(1))],
    ['alwaysOn', alwaysOn],
    ['alwaysOff', alwaysOff],
    ['one of the app', everySecond],
    ['one of the app, for roots', parentBased(everySecond)],
  ]
  const undecided = b3Propagator.extract(root, { b3: `${TRACE}-${PARENT}` }, defaultTextMapGetter)
  const parents: [string, (tracer: ReturnType<typeof engine>['tracer']) => ApiSpan | undefined][] = [
    ['no parent', () => undefined],
    ...[0, 1, 2, 3, 0xfe, 0xff].map(
      (flags) =>
        [`a remote one with flags ${flags}`, () => trace.wrapSpanContext(remote(flags))] as [
          string,
          () => ApiSpan,
        ],
    ),
    ...['a=1', 'ot=th:8,a=1', 'ot=th:fffffffffffff8', 'ot=rv:00000000000000;th:0'].flatMap((state) =>
      [0, 1].map(
        (flags) =>
          [
            `a remote one with flags ${flags} and ${state}`,
            () => trace.wrapSpanContext(remote(flags, state)),
          ] as [string, () => ApiSpan],
      ),
    ),
    ['one whose sender left the decision to us', () => trace.getSpan(undecided)],
    ['a local one of somebody else’s', () => trace.wrapSpanContext({ ...remote(1, 'a=1'), isRemote: false })],
    [
      'a local one of somebody else’s, whose threshold cannot be why it is sampled',
      () => trace.wrapSpanContext({ ...remote(1, 'ot=th:fffffffffffff8'), isRemote: false }),
    ],
    [
      'a local one that is not sampled',
      () => trace.wrapSpanContext({ ...remote(2, 'a=1'), isRemote: false }),
    ],
    ['one that is none', () => trace.wrapSpanContext({ ...remote(1), traceId: '0'.repeat(32) })],
    ['one with capitals', () => trace.wrapSpanContext({ ...remote(1), traceId: TRACE.toUpperCase() })],
    ['one of ours', (tracer) => tracer.startSpan('outer')],
    ['one of a seam', (tracer) => tracer.startDeferred(options(), root, SpanKind.SERVER)],
    [
      'a child of a seam',
      (tracer) =>
        tracer.startDeferred(options(), withSpan(root, trace.wrapSpanContext(remote(0))), SpanKind.SERVER),
    ],
  ]

  for (const [samplerName, sampler] of samplers) {
    test.each(parents)(`by ${samplerName}, under %s`, (_name, parentBy) => {
      const ownIds = { ...randomIds, generateSpanId: () => 'abcdefabcdefabcd' }
      for (const given of [{ idGenerator: randomIds }, { idGenerator: ownIds }, { hidesRandom: true }]) {
        const { tracer, ended } = engine({ sampler, ...given })
        const parent = parentBy(tracer)
        const within = parent === undefined ? root : withSpan(root, parent)
        const bySeam = tracer.startDeferred(options(), within, SpanKind.SERVER)
        const byApi = tracer.startSpan(
          'work',
          { kind: SpanKind.SERVER, attributes: { ...ATTRIBUTES } },
          within,
        )
        const isRoot = byApi.spanContext().traceId !== TRACE
        const known = (span: ApiSpan) => {
          const { traceId, spanId, traceState, ...rest } = span.spanContext()
          const isOwn = given.idGenerator !== ownIds
          return {
            ...rest,
            traceId: isRoot && parent?.spanContext().traceId !== traceId ? 'new' : traceId,
            spanId: isOwn ? /^(?!0+$)[0-9a-f]{16}$/.test(spanId) : spanId,
            traceState: traceState?.serialize(),
            isRecording: span.isRecording(),
          }
        }
        expect(known(bySeam)).toEqual(known(byApi))
        if (given.hidesRandom === true && !isRoot)
          expect(bySeam.spanContext().traceFlags).toBeLessThanOrEqual(TraceFlags.SAMPLED)
        expect(bySeam.spanContext()).toBe(bySeam.spanContext())
        expect(byApi.isRecording()).toBe(bySeam.isRecording())
        if (!bySeam.isRecording()) {
          expect(bySeam.setAttribute('a', 1).addEvent('e').setStatus({ code: 2 }).updateName('n')).toBe(
            bySeam,
          )
          bySeam.end()
          expect(ended).toEqual([])
          continue
        }
        bySeam.end()
        byApi.end()
        const [one, other] = ended as [ReadableSpan, ReadableSpan]
        expect(one.attributes).toEqual(other.attributes)
        expect(one.parentSpanContext).toEqual(other.parentSpanContext)
        expect([one.kind, one.name, one.droppedAttributesCount]).toEqual([other.kind, other.name, 0])
      }
    })
  }

  test('its processors get the context that it was started in, and its times are on its parent’s clock', () => {
    const given: unknown[] = []
    const { tracer } = engine({
      sampler: parentBased(alwaysOn),
      processors: [processor({ onStart: (_span, within) => given.push(within) })],
    })
    const outer = tracer.startSpan('outer') as unknown as OurSpan
    const within = withSpan(root, outer)
    const span = tracer.startDeferred(options(), within, SpanKind.SERVER) as unknown as OurSpan
    expect(given.at(-1)).toBe(within)
    // An hour later by the wall clock, and a second by the monotonic one: somebody has set it.
    const [wall, monotonic] = [Date.now() + 3_600_000, performance.now() + 1000]
    vi.spyOn(Date, 'now').mockReturnValue(wall)
    vi.spyOn(performance, 'now').mockReturnValue(monotonic)
    onTestFinished(() => void vi.restoreAllMocks())
    const later = tracer.startDeferred(options(), within, SpanKind.SERVER) as unknown as OurSpan
    expect(later.anchor).toBe(outer.anchor)
    expect(span.anchor).toBe(outer.anchor)
    const elsewhere = tracer.startSpan('elsewhere') as unknown as OurSpan
    expect(elsewhere.anchor).not.toBe(outer.anchor)
  })

  test('where tracing is suppressed there is none', () => {
    const { tracer, ended } = engine({ sampler: parentBased(alwaysOn) })
    const within = suppressTracing(withSpan(root, trace.wrapSpanContext(remote(1))))
    const span = tracer.startDeferred(options(), within, SpanKind.SERVER)
    span.end()
    expect([span.isRecording(), ended]).toEqual([false, []])
  })

  test('a processor that comes into the app’s list after the start is told of nothing, by half or otherwise', () => {
    const told: string[] = []
    const late = processor({
      onStart: () => told.push('start'),
      onEnding: () => told.push('ending'),
      onEnd: () => told.push('end'),
    })
    const processors = [processor({})]
    const { tracer } = engine({ processors })
    processors.push(late)
    tracer.startSpan('work').end()
    expect(told).toEqual([])
  })

  test('an unsampled one makes no attributes, and no name', () => {
    const { tracer } = engine({ sampler: parentBased(alwaysOn) })
    const within = withSpan(root, trace.wrapSpanContext(remote(0)))
    const unasked = options(() => {
      throw new Error('nobody has asked')
    })
    unasked.name = unasked.build as never
    const dropped = tracer.startDeferred(unasked, within, SpanKind.SERVER)
    // What throws gives a span of the API's own.
    expect(dropped.constructor.name).toBe('DroppedSpan')
  })
})

describe('the first span of a trace, which a seam may drop before it has an id', () => {
  const RATIOS = [0, 2 ** -58, 2 ** -56, 2 ** -33, 0.01, 1 / 3, 0.5, 1 - 2 ** -24, 1]
  const begun = (given: Parameters<typeof engine>[0]) => {
    const { tracer } = engine(given)
    return tracer.startDeferred(options(), root, SpanKind.SERVER)
  }

  test('is decided about as its id would be', () => {
    // As 14 digits, each threshold and its neighbours among them.
    const digits = (value: bigint) => BigInt.asUintN(56, value).toString(16).padStart(14, '0')
    const near = RATIOS.flatMap((ratio) =>
      [-1n, 0n, 1n].map((off) => digits(2n ** 56n - BigInt(Math.round(ratio * 2 ** 56)) + off)),
    )
    const rounded = ['fd70a', 'aaab', '8'].flatMap((th) =>
      [-1n, 0n, 1n].map((off) => digits(BigInt(`0x${th.padEnd(14, '0')}`) + off)),
    )
    const random = Array.from({ length: 500 }, () => randomIds.generateTraceId().slice(-14))
    for (const ratio of RATIOS) {
      for (const sampler of [traceIdRatio(ratio), probability(ratio)].map(parentBased)) {
        for (const last of [...near, ...rounded, ...random]) {
          const byId = sampler.shouldSample(root, `${'a'.repeat(18)}${last}`, 'work', SpanKind.SERVER, {}, [])
          const upper = Number.parseInt(last.slice(0, 6), 16)
          const lower = Number.parseInt(last.slice(6), 16)
          const byNumbers = rootDecisionOf(sampler)?.(upper, lower)
          expect([ratio, last, byNumbers?.decision]).toEqual([ratio, last, byId.decision])
          expect(byNumbers?.traceState?.serialize()).toBe(byId.traceState?.serialize())
        }
      }
    }
  })

  test('has an id that its decision follows from, and says what every span of a new trace says', () => {
    const seen = new Set<string>()
    for (let count = 0; count < 400; count += 1) {
      const sampler = parentBased(count % 2 === 0 ? traceIdRatio(0.5) : probability(0.5))
      const flagsRandom = count % 4 < 2
      const span = begun({ sampler, flagsRandom })
      const { traceId, spanId, traceFlags, traceState } = span.spanContext()
      expect(traceId).toMatch(/^(?!0+$)[0-9a-f]{32}$/)
      expect(spanId).toMatch(/^(?!0+$)[0-9a-f]{16}$/)
      expect([traceId, span.isRecording()]).toEqual([traceId, traceId.slice(-14) >= '8'])
      expect(traceFlags).toBe((flagsRandom ? 2 : 0) + (span.isRecording() ? 1 : 0))
      expect(traceState?.serialize()).toBe(span.isRecording() && count % 2 === 1 ? 'ot=th:8' : undefined)
      seen.add(traceId).add(spanId)
    }
    expect(seen.size).toBe(800)
  })

  test('is compared by all bits of its id, as numbers without a sign', () => {
    onTestFinished(() => void randomFillSync(randomWords))
    randomWords.fill(0x80800000)
    // Its last 14 digits are 80000080800000, no less than the threshold of a half.
    for (const sampler of [traceIdRatio(0.5), probability(0.5)].map(parentBased))
      expect(begun({ sampler }).isRecording()).toBe(true)
    randomWords.fill(0x807fffff)
    for (const sampler of [traceIdRatio(0.5), probability(0.5)].map(parentBased))
      expect(begun({ sampler }).isRecording()).toBe(false)
  })

  test('goes on with its trace where it was dropped: the spans below it, and the headers', () => {
    const { tracer } = engine({ sampler: parentBased(alwaysOff) })
    const dropped = tracer.startDeferred(options(), root, SpanKind.SERVER)
    const within = withSpan(root, dropped)
    const { traceId } = dropped.spanContext()
    for (const child of [
      tracer.startSpan('child', {}, within),
      tracer.startDeferred(options(), within, SpanKind.CLIENT),
    ])
      expect([child.spanContext().traceId, child.isRecording()]).toEqual([traceId, false])
    expect(tracer.dropsUnder(dropped)).toBe(true)
    const headers: Record<string, string> = {}
    w3cPropagator.inject(within, headers, defaultTextMapSetter)
    expect(headers).toEqual({ traceparent: `00-${traceId}-${dropped.spanContext().spanId}-02` })
  })

  test('is asked for neither name nor attributes where it is dropped, and for both where it is kept', () => {
    const unasked = options(() => {
      throw new Error('nobody has asked')
    })
    unasked.name = unasked.build as never
    const { tracer } = engine({ sampler: parentBased(traceIdRatio(0)) })
    expect(tracer.startDeferred(unasked, root, SpanKind.SERVER).constructor.name).toBe('DroppedSpan')
    const { tracer: keeping, ended } = engine({ sampler: parentBased(traceIdRatio(1)) })
    keeping.startDeferred(options(), root, SpanKind.SERVER).end()
    expect(
      ended.map(({ name, kind, attributes, parentSpanContext }) => [
        name,
        kind,
        attributes,
        parentSpanContext,
      ]),
    ).toEqual([['work', SpanKind.SERVER, ATTRIBUTES, undefined]])
  })

  test('takes its ids from the app’s generator, if there is one', () => {
    const own = { generateTraceId: () => `${'a'.repeat(31)}f`, generateSpanId: () => 'b'.repeat(16) }
    for (const sampler of [parentBased(alwaysOff), parentBased(alwaysOn)])
      expect(begun({ sampler, idGenerator: own }).spanContext()).toMatchObject({
        traceId: own.generateTraceId(),
        spanId: own.generateSpanId(),
      })
  })
})

describe('a span’s id', () => {
  test('is the same for whoever asks, before and after, and for whoever exports it unasked', () => {
    const { tracer, ended } = engine()
    const idIn = (span: ReadableSpan) => {
      const [bytes] = decodeRequest(encodeProtobuf([span])).resourceSpans?.[0]?.scopeSpans?.[0]?.spans ?? []
      const { resourceSpans } = JSON.parse(encodeJson([span]).toString())
      expect(resourceSpans[0].scopeSpans[0].spans[0].spanId).toBe(
        Buffer.from(bytes?.spanId ?? []).toString('hex'),
      )
      return Buffer.from(bytes?.spanId ?? []).toString('hex')
    }
    for (let count = 0; count < 1000; count += 1) {
      const outer = tracer.startSpan('unasked')
      outer.end()
      const span = ended.at(-1) as ReadableSpan
      const exported = Buffer.from(
        decodeRequest(encodeProtobuf([span])).resourceSpans?.[0]?.scopeSpans?.[0]?.spans?.[0]?.spanId ?? [],
      ).toString('hex')
      const view = Object.create(span) as ReadableSpan
      expect(exported).toMatch(/^(?!0+$)[0-9a-f]{16}$/)
      expect(view.spanContext().spanId).toBe(exported)
      expect(span.spanContext().spanId).toBe(exported)
      expect(idIn(span)).toBe(exported)
      const child = tracer.startSpan(
        'child',
        {},
        trace.setSpan(ROOT_CONTEXT, outer),
      ) as unknown as ReadableSpan
      expect(child.parentSpanContext?.spanId).toBe(exported)
    }
  })

  test('is never all zeros, whatever the generator of random bytes gives', () => {
    const { tracer, ended } = engine({ sampler: parentBased(alwaysOn) })
    onTestFinished(() => void randomFillSync(randomWords))
    randomWords.fill(0)
    // The trace has an id already: one of zeros would be made anew.
    const within = (flags: number) => withSpan(root, trace.wrapSpanContext(remote(flags)))
    const span = tracer.startSpan('work', {}, within(1))
    span.end()
    expect(span.spanContext().spanId).toBe('0000000000000001')
    expect(encodeJson(ended).toString()).toContain('"spanId":"0000000000000001"')
    const dropped = tracer.startDeferred(options(), within(0), SpanKind.SERVER)
    expect(dropped.spanContext().spanId).toBe('0000000000000001')
    const first = `00000001${'0'.repeat(24)}`
    expect(tracer.startSpan('first').spanContext().traceId).toBe(first)
    expect(tracer.startDeferred(options(), root, SpanKind.SERVER).spanContext().traceId).toBe(first)
    const { tracer: dropping } = engine({ sampler: parentBased(alwaysOff) })
    expect(dropping.startDeferred(options(), root, SpanKind.SERVER).spanContext().traceId).toBe(first)
  })

  test('of a dropped span is the same by a view of it, and where it is frozen', () => {
    const { tracer } = engine({ sampler: parentBased(alwaysOn) })
    const within = withSpan(root, trace.wrapSpanContext(remote(2, 'a=1')))
    const dropped = () =>
      tracer.startDeferred(
        options(),
        withSpan(root, tracer.startDeferred(options(), within, SpanKind.SERVER)),
        SpanKind.SERVER,
      )
    const { tracer: dropping } = engine({ sampler: parentBased(alwaysOff) })
    const first = () => dropping.startDeferred(options(), root, SpanKind.SERVER)
    const deeplyFrozen = [dropped(), first()]
    for (const span of deeplyFrozen)
      for (const held of Object.values(span)) if (typeof held === 'object') Object.freeze(held)
    for (const span of [
      dropped(),
      first(),
      ...[dropped(), first(), ...deeplyFrozen].map(Object.freeze),
    ] as ApiSpan[]) {
      const view = Object.create(span) as ApiSpan
      expect(view.spanContext()).toEqual(span.spanContext())
      expect(span.spanContext()).toEqual(span.spanContext())
      expect(Object.assign(Object.create(Object.getPrototypeOf(span) as object), span).spanContext()).toEqual(
        span.spanContext(),
      )
    }
  })
})

describe('spans of many traces', () => {
  test('whose ids end alike keep their own, in whatever order they are encoded', () => {
    const { tracer, ended } = engine()
    const ids = Array.from(
      { length: 200 },
      (_, index) => `${(index + 1).toString(16).padStart(30, '0')}${index % 3}f`,
    )
    for (const traceId of [...ids, ...ids, ...ids.toReversed()]) {
      tracer.startSpan('work', {}, withSpan(root, trace.wrapSpanContext({ ...remote(1), traceId }))).end()
    }
    const spans = decodeRequest(encodeProtobuf(ended)).resourceSpans?.[0]?.scopeSpans?.[0]?.spans ?? []
    expect(spans.map(({ traceId }) => Buffer.from(traceId ?? []).toString('hex'))).toEqual(
      ended.map((span) => span.spanContext().traceId),
    )
  })
})

describe('the limit of attributes', () => {
  // A seam says how many it has at most, and that is what is counted until somebody comes near the limit.
  test.each([1, 11, 12, 13, 31, 32, 33, 40, 41, 42, 100])(
    'of %i is kept to the one',
    (attributeCountLimit) => {
      const { tracer, ended } = engine({
        limits: { ...LIMITS, attributeCountLimit },
        sampler: parentBased(alwaysOn),
      })
      const built = Object.fromEntries(Array.from({ length: 12 }, (_, index) => [`own.${index}`, index]))
      const within = withSpan(root, trace.wrapSpanContext(remote(1)))
      const span = tracer.startDeferred(
        options(() => ({ ...built })),
        within,
        SpanKind.SERVER,
      )
      for (let index = 0; index < 30; index += 1) span.setAttribute(`app.${index}`, index)
      span.setAttribute('app.0', 'again').end()
      const kept = Math.min(42, attributeCountLimit)
      expect(Object.keys(ended[0]?.attributes ?? {})).toHaveLength(kept)
      // What is set again where there was no room for it is dropped again.
      expect(ended[0]?.droppedAttributesCount).toBe(42 - kept + (attributeCountLimit <= 12 ? 1 : 0))
    },
  )

  test('counts what has the name of something that every object has', () => {
    const { tracer, ended } = engine({ limits: { ...LIMITS, attributeCountLimit: 2 } })
    const span = tracer.startSpan('work')
    span.setAttributes({ toString: 'a', constructor: 'b', valueOf: 'c' }).end()
    expect(ended[0]).toMatchObject({
      attributes: { toString: 'a', constructor: 'b' },
      droppedAttributesCount: 1,
    })
  })

  test('costs the same for each that is dropped, however many there are', () => {
    const { tracer } = engine()
    const span = tracer.startSpan('work') as unknown as OurSpan
    let enumerated = 0
    span.attributes = new Proxy(span.attributes, {
      ownKeys: (target) => {
        enumerated += 1
        return Reflect.ownKeys(target)
      },
    })
    for (let index = 0; index < 1000; index += 1) span.setAttribute(`app.${index}`, index)
    expect(span.droppedAttributesCount).toBe(1000 - 128)
    expect(enumerated).toBeLessThanOrEqual(1)
  })

  test('holds for a request of which 200 headers are recorded', async () => {
    const recording = record()
    const names = Array.from({ length: 200 }, (_, index) => `x-app-${index}`)
    const options = { capture: { requestHeaders: names } }
    const serving = await listening(
      createServer((request, response) => {
        traceRequest(request, response, () => response.end('ok'), options)
      }),
    )
    onTestFinished(() => serving.close())
    const headers = Object.fromEntries(names.map((name) => [name, '1']))
    await ask(serving, '/', { headers })
    await ask(serving, '/', { headers: { ...headers, traceparent: `00-${TRACE}-${PARENT}-01` } })
    for (const { attributes, droppedAttributesCount } of await recording.all(2)) {
      expect(Object.keys(attributes)).toHaveLength(128)
      expect(droppedAttributesCount).toBeGreaterThan(80)
      expect(droppedAttributesCount).toBeLessThan(90)
    }
  })
})

describe('what the API has answered', () => {
  const theirs = (): ApiTracerProvider => ({ getTracer: (name, version) => trace.getTracer(name, version) })

  test('is forgotten with who was registered, also where nobody asked in between', () => {
    expect(registeredProvider()).toBeUndefined()
    trace.setGlobalTracerProvider(theirs())
    trace.disable()
    expect(registeredProvider()).toBeUndefined()
    const [one, other] = [theirs(), theirs()]
    trace.setGlobalTracerProvider(one)
    expect(registeredProvider()).toBe(one)
    trace.disable()
    trace.setGlobalTracerProvider(other)
    expect(registeredProvider()).toBe(other)
    trace.disable()
    expect(registeredProvider()).toBeUndefined()
  })

  test('of the context is right while ours is in charge, when it is not any more, and when another is', async () => {
    const scope = root.setValue(Symbol('of a test'), 1)
    const seen = () => [activeContext(), context.active()]
    const tracing = start({ signals: false, spanProcessors: [] })
    expect(runIn(scope, seen)).toEqual([scope, scope])
    expect(context.with(scope, seen)).toEqual([scope, scope])
    expect(seen()).toEqual([root, root])
    context.disable()
    expect(runIn(scope, seen)).toEqual([ROOT_CONTEXT, ROOT_CONTEXT])
    let asked = 0
    const constant: ContextManager = {
      active: () => scope,
      with: (_scope, fn, self, ...given) => {
        asked += 1
        return fn.call(self as ThisParameterType<typeof fn>, ...given)
      },
      bind: (_scope, target) => target,
      enable: () => constant,
      disable: () => constant,
    }
    context.setGlobalContextManager(constant)
    expect(seen()).toEqual([scope, scope])
    expect(runIn(root, seen)).toEqual([scope, scope])
    expect(asked).toBe(1)
    await tracing.shutdown()
    context.disable()
  })
})
