import type { Attributes, AttributeValue, SpanKind } from '@opentelemetry/api'
import { isPlain, isPrimitive } from './attribute.ts'
import { expected, MATCH, matcher, validated, type Match, type Shape } from './options.ts'
import { probability, type ConsistentSampler, type HeadSampler } from './sampling.ts'
import * as semconv from './semconv.ts'

/** What a new trace's first span must be like for a rule; what is left out is not asked. */
export interface RuleMatch {
  kind?: 'internal' | 'server' | 'client' | 'producer' | 'consumer'
  method?: Match<[string]>
  path?: Match<[string]>
  name?: Match<[string]>
  /** By attribute; a number or a boolean is compared as its text. */
  attributes?: Record<string, Match<[string]>>
}

/** The share of the new traces that it matches which is kept, 0 to 1. */
export interface SamplingRule {
  match: RuleMatch
  rate: number
}

type Test = (name: string, kind: SpanKind, attributes: Attributes) => boolean

const KINDS = ['internal', 'server', 'client', 'producer', 'consumer'] as const

const RULE: Shape<SamplingRule> = {
  match: expected('a plain object', "match: { path: '/health' }", isPlain),
  rate: expected(
    'a number from 0 to 1',
    'rate: 0.1',
    (value) => typeof value === 'number' && value >= 0 && value <= 1,
  ),
}

const ANY_TEXT = MATCH("'app.tier': 'free'")

const MATCHES: Shape<RuleMatch> = {
  kind: expected(`one of ${KINDS.join(', ')}`, "kind: 'server'", (value) => KINDS.includes(value as never)),
  method: MATCH("method: 'GET'"),
  path: MATCH("path: ['/health', /^\\/assets\\//]"),
  name: MATCH("name: 'nightly'"),
  attributes: expected(
    'an object of functions, strings, RegExps or lists',
    "attributes: { 'app.tier': 'free' }",
    (value) => isPlain(value) && Object.values(value).every(isTextTest),
  ),
}

/**
 * A sampler for roots: the first rule that matches what is known at the start decides; where none does, the trace is kept.
 * The route is not among what can be matched: which framework will serve is not known here, and only Fastify knows the
 * route at the start. There it is an attribute like any other.
 * @throws TypeError for a rule of the wrong shape.
 */
export function ruleBased(rules: readonly SamplingRule[]): ConsistentSampler {
  // A hole in the list is not a rule either.
  const compiled = Array.from(rules, (rule) => {
    const { match, rate } = validated('start(): a rule of sampling', RULE, rule)
    if (match === undefined || rate === undefined) {
      const missing = [match === undefined && 'match', rate === undefined && 'rate']
        .filter(Boolean)
        .join(' and ')
      throw new TypeError(
        `start(): expected each rule of sampling to have match and rate, received one without ${missing}; example: { match: { path: '/health' }, rate: 0 }`,
      )
    }
    return { test: testOf(match), sampler: probability(rate) }
  })

  const sampler: ConsistentSampler = {
    setsThreshold: true,
    shouldSample(context, traceId, name, kind, attributes, links) {
      const rule = compiled.find(({ test }) => test(name, kind, attributes))
      return (rule?.sampler ?? everything).shouldSample(context, traceId, name, kind, attributes, links)
    },
    toString: () => `RuleBased{${rules.map(({ rate }) => rate).join(', ')}}`,
  }
  const isByName = rules.every(
    ({ match }) => !('method' in match || 'path' in match || 'attributes' in match),
  )
  return isByName
    ? Object.assign(sampler, { ignoresAttributes: true } satisfies Partial<HeadSampler>)
    : sampler
}

const everything = probability(1)

function testOf(match: RuleMatch): Test {
  if ('route' in match) {
    throw new TypeError(
      `start(): expected match of sampling to have kind, method, path, name or attributes, received route, which is not known when a span starts: the router has not run yet. Only Fastify knows it by then, as attributes: { 'http.route': '/users/:id' }. Elsewhere match the path instead; example: { match: { path: /^\\/users\\/[^/]+$/ }, rate: 0.1 }`,
    )
  }
  const {
    kind,
    method,
    path,
    name,
    attributes = {},
  } = validated('start(): match of sampling', MATCHES, match)
  refuseUnset('match', match)
  refuseUnset('attributes', attributes)
  const isName = textTest('name', name)
  const wanted = [
    { key: semconv.HTTP_REQUEST_METHOD, isWanted: textTest('method', method) },
    { key: semconv.URL_PATH, isWanted: textTest('path', path) },
    ...Object.entries(attributes).map(([key, one]) => ({ key, isWanted: textTest(key, one) })),
  ].filter(({ isWanted }) => isWanted !== undefined)

  return (spanName, spanKind, given) =>
    (kind === undefined || KINDS[spanKind] === kind) &&
    isName?.(spanName) !== false &&
    wanted.every(
      ({ key, isWanted }) => isWanted?.(Object.hasOwn(given, key) ? given[key] : undefined) === true,
    )
}

/** `{ kind: 'server', path: process.env['QUIET'] }` would match every request if that is not set. */
function refuseUnset(of: string, given: object): void {
  for (const [name, value] of Object.entries(given)) {
    if (value !== undefined) continue
    throw new TypeError(
      `start(): expected each value in ${of} of sampling to be there, received ${name}: undefined, which would match everything; example: { match: { path: '/health' }, rate: 0 }`,
    )
  }
}

function isTextTest(value: unknown): boolean {
  return value === undefined || ANY_TEXT.accepts(value)
}

function textTest(
  name: string,
  match: Match<[string]> | undefined,
): ((value: AttributeValue | undefined) => boolean) | undefined {
  const test = matcher<[string]>(name, match, (text) => text)
  return test && ((value) => hasText(value) && test(String(value)))
}

/** A text, a number, a boolean, or a list of them: bytes and records match nothing. */
function hasText(value: unknown): boolean {
  if (Array.isArray(value))
    return value.every((item) => item === null || item === undefined || isPrimitive(item))
  return isPrimitive(value)
}
