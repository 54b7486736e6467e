import * as stable from '@opentelemetry/semantic-conventions'
import * as incubating from '@opentelemetry/semantic-conventions/incubating'
import { expect, test } from 'vitest'
import * as semconv from '../../packages/core/src/semconv.ts'

const conventions = new Set<unknown>(
  [...Object.entries(stable), ...Object.entries(incubating)]
    .filter(([name]) => /^(ATTR|EVENT|METRIC)_|_VALUE_OTHER$/.test(name))
    .flatMap(([, value]) => (typeof value === 'function' ? [value('x')] : [value])),
)

test.each(Object.entries(semconv))(
  '%s is a name of the semantic conventions, or one of our own',
  (_, name) => {
    if (name.startsWith('throughline.')) return
    // The conventions have forgotten the old metrics.
    if (name === 'http.server.duration' || name === 'http.client.duration') return
    expect(conventions).toContain(name.endsWith('.') ? `${name}x` : name)
  },
)

test('no name stands there twice', () => {
  const names = Object.values(semconv)
  expect(new Set(names).size).toBe(names.length)
})
