import { defaultResource, resourceFromAttributes } from '@opentelemetry/resources'
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest'
import { readConfig, type StartOptions } from '../../packages/core/src/config.ts'
import { VERSION } from '../../packages/core/src/resource.ts'
import { said } from './engine.ts'

vi.mock('node:timers', () => import('../app-timers.ts'))

const started = process.argv[1] as string
let folder: string

function attributes(environment: Record<string, string> = {}, options: StartOptions = {}) {
  return readConfig(options, environment).resource.attributes
}

const nameOf = (...given: Parameters<typeof attributes>) => attributes(...given)['service.name']

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'resource-'))
  mkdirSync(join(folder, 'dist/bin'), { recursive: true })
  writeFileSync(join(folder, 'package.json'), '{ "name": "orders" }')
  // What bundlers leave beside their output has no name, and is no service.
  writeFileSync(join(folder, 'dist/package.json'), '{ "type": "module" }')
  writeFileSync(join(folder, 'dist/bin/package.json'), 'no JSON')
  process.argv[1] = join(folder, 'dist/bin/server.js')
})
afterEach(() => {
  process.argv[1] = started
  rmSync(folder, { recursive: true })
})

describe('the name of the service is', () => {
  const byPairs = { OTEL_RESOURCE_ATTRIBUTES: 'service.name=by-pairs,team=shop' }
  const byName = { ...byPairs, OTEL_SERVICE_NAME: 'by-name' }

  test('what the code says', () => {
    expect(nameOf(byName, { serviceName: 'by-code', resource: { 'service.name': 'by-resource' } })).toBe(
      'by-code',
    )
    expect(nameOf(byName, { resource: { 'service.name': 'by-resource' } })).toBe('by-resource')
  })

  test('else OTEL_SERVICE_NAME, else OTEL_RESOURCE_ATTRIBUTES', () => {
    expect(nameOf(byName)).toBe('by-name')
    expect(nameOf(byPairs)).toBe('by-pairs')
  })

  test('else the name in the package.json nearest to the script that was started', () => {
    expect(nameOf()).toBe('orders')
  })

  test('of the package of a command, which is a link to its script', () => {
    writeFileSync(join(folder, 'dist/bin/server.js'), '')
    const elsewhere = mkdtempSync(join(tmpdir(), 'resource-bin-'))
    onTestFinished(() => rmSync(elsewhere, { recursive: true }))
    symlinkSync(join(folder, 'dist/bin/server.js'), join(elsewhere, 'orders'))
    process.argv[1] = join(elsewhere, 'orders')
    expect(nameOf()).toBe('orders')
  })

  test('not that of what has launched it: there the name of where it runs, or of what PM2 says it runs', () => {
    const launcher = join(folder, 'node_modules/launcher')
    mkdirSync(launcher, { recursive: true })
    writeFileSync(join(launcher, 'package.json'), '{ "name": "launcher" }')
    process.argv[1] = join(launcher, 'run.js')
    const runsIn = vi.spyOn(process, 'cwd').mockReturnValue(join(folder, 'dist'))
    onTestFinished(() => void runsIn.mockRestore())
    expect(nameOf()).toBe('orders')
    const elsewhere = mkdtempSync(join(tmpdir(), 'resource-other-'))
    onTestFinished(() => rmSync(elsewhere, { recursive: true }))
    writeFileSync(join(elsewhere, 'package.json'), '{ "name": "other" }')
    runsIn.mockReturnValue(elsewhere)
    expect(nameOf()).toBe('launcher')
    // Its folder has been deleted.
    runsIn.mockImplementation(() => {
      throw new Error('ENOENT: no such file or directory, uv_cwd')
    })
    expect(nameOf()).toBe('launcher')
    vi.stubEnv('pm_exec_path', join(folder, 'dist/bin/server.js'))
    onTestFinished(() => void vi.unstubAllEnvs())
    expect(nameOf()).toBe('orders')
  })

  test('not what is not there', () => {
    const name = process.env['A_VARIABLE_THAT_IS_NOT_SET'] as string
    const resource = { 'service.name': name, 'service.version': '1' }
    expect(attributes(byName, { resource })).toMatchObject({
      'service.name': 'by-name',
      'service.version': '1',
    })
    expect(nameOf({}, { resource: resourceFromAttributes({ 'service.name': undefined }) })).toBe('orders')
    expect(nameOf({ OTEL_RESOURCE_ATTRIBUTES: 'service.name=' })).toBe('orders')
  })

  test("not the placeholder of the official SDK's default resource", () => {
    const resource = defaultResource().merge(
      resourceFromAttributes({ 'deployment.environment.name': 'test' }),
    )
    expect(attributes(byName, { resource })).toMatchObject({
      'service.name': 'by-name',
      'deployment.environment.name': 'test',
    })
    expect(nameOf({}, { resource })).toBe('orders')
    expect(nameOf({}, { resource: resourceFromAttributes({ 'service.name': 'unknown_services' }) })).toBe(
      'unknown_services',
    )
  })

  test('else unknown_service:node', () => {
    process.argv[1] = '/server.js'
    expect(nameOf()).toBe('unknown_service:node')
    process.argv.splice(1)
    expect(nameOf()).toBe('unknown_service:node')
  })
})

describe('the resource', () => {
  test('says which process made the spans, and neither its command line nor its environment', () => {
    expect(attributes()).toEqual({
      'service.name': 'orders',
      'service.instance.id': expect.stringMatching(
        /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-/,
      ),
      'telemetry.sdk.language': 'nodejs',
      'telemetry.sdk.name': 'throughline',
      'telemetry.sdk.version': VERSION,
      'host.name': expect.any(String),
      'process.pid': process.pid,
      'process.runtime.name': 'nodejs',
      'process.runtime.version': process.versions.node,
    })
  })

  test('has what the environment and the code add; the code wins', () => {
    const environment = { OTEL_RESOURCE_ATTRIBUTES: 'team=shop,region=eu%2Cwest, tier = 1' }
    expect(attributes(environment, { resource: { team: 'orders', replicas: 3 } })).toMatchObject({
      team: 'orders',
      region: 'eu,west',
      tier: '1',
      replicas: 3,
    })
  })

  test('takes an official Resource as it takes attributes, detectors that still ask included', async () => {
    const official = resourceFromAttributes({
      'service.name': 'by-resource',
      zone: Promise.resolve('a'),
      team: 'orders',
    })
    const environment = { OTEL_SERVICE_NAME: 'by-name', OTEL_RESOURCE_ATTRIBUTES: 'team=shop,region=eu' }
    const { resource } = readConfig({ resource: official, serviceName: 'by-code' }, environment)
    expect(resource.asyncAttributesPending).toBe(true)
    await resource.waitForAsyncAttributes?.()
    expect(resource.asyncAttributesPending).toBe(false)
    expect(resource.attributes).toMatchObject({
      'service.name': 'by-code',
      zone: 'a',
      team: 'orders',
      region: 'eu',
      'process.pid': process.pid,
    })
    expect(resource.attributes['service.instance.id']).toBe(resource.attributes['service.instance.id'])
  })

  test('leaves out what is no attribute, and says so', () => {
    const reports = said()
    const given = {
      '': 'x',
      symbol: Symbol('s'),
      promise: Promise.resolve(),
      fn: () => {},
      list: [1, Symbol('s')],
      ok: 'yes',
    }
    const described = attributes({}, { resource: given as never })
    expect(Object.keys(described).filter((name) => name in given)).toEqual(['ok'])
    expect(reports.lines).toHaveLength(5)
    for (const line of reports.lines) expect(line).toContain('for example resourceFromAttributes({')
  })

  test('is merged with others as they are with it, and of two values the other is taken', () => {
    type Mergeable = ReturnType<typeof resourceFromAttributes>
    const official = resourceFromAttributes(
      { team: 'orders', 'host.name': 'other' },
      { schemaUrl: 'https://a/1' },
    )
    for (const resource of [{ team: 'shop', tier: 1 }, resourceFromAttributes({ team: 'shop', tier: 1 })]) {
      const ours = readConfig({ resource }, {}).resource as Mergeable
      expect(ours.merge(official).attributes).toEqual({ ...ours.attributes, ...official.attributes })
      expect(official.merge(ours).attributes).toEqual({ ...official.attributes, ...ours.attributes })
      expect(ours.merge(null)).toBe(ours)
      expect([ours.merge(official), official.merge(ours)].map(({ schemaUrl }) => schemaUrl)).toEqual([
        'https://a/1',
        'https://a/1',
      ])
      const twice = ours.merge(official).merge(official)
      expect([
        twice.schemaUrl,
        twice.merge(resourceFromAttributes({})).schemaUrl,
        twice.merge(resourceFromAttributes({}, { schemaUrl: 'https://b/1' })).schemaUrl,
      ]).toEqual(['https://a/1', 'https://a/1', undefined])
      expect(twice.attributes).toEqual({ ...ours.attributes, ...official.attributes })
    }
  })

  test('of a schema keeps its URL', () => {
    const official = resourceFromAttributes({ team: 'orders' }, { schemaUrl: 'https://example.org/1.0.0' })
    expect(readConfig({ resource: official }, {}).resource.schemaUrl).toBe('https://example.org/1.0.0')
  })

  test('that fails to find out its attributes is said once, and keeps no span from being sent', async () => {
    const reports = said()
    const given = {
      attributes: { team: 'orders' },
      asyncAttributesPending: true,
      waitForAsyncAttributes: () => Promise.reject(new Error('no metadata server')),
    }
    const { resource } = readConfig({ resource: given }, {})
    await resource.waitForAsyncAttributes?.()
    await resource.waitForAsyncAttributes?.()
    expect(resource.attributes['team']).toBe('orders')
    expect(reports.lines).toEqual([expect.stringContaining('the resource has failed')])
  })

  test('that never finds out its attributes is said once, and what it knows goes without them', async () => {
    vi.useFakeTimers()
    try {
      const reports = said()
      let find = () => {}
      const given = {
        attributes: { team: 'orders' } as Record<string, string>,
        asyncAttributesPending: true,
        waitForAsyncAttributes: () => new Promise<void>((resolve) => (find = resolve)),
      }
      const { resource } = readConfig({ resource: given }, {})
      const waited = [resource.waitForAsyncAttributes?.(), resource.waitForAsyncAttributes?.()]
      vi.advanceTimersByTime(1499)
      expect(resource.asyncAttributesPending).toBe(true)
      vi.advanceTimersByTime(1)
      await Promise.all(waited)
      find()
      given.attributes['cloud.region'] = 'eu-1'
      expect(resource.asyncAttributesPending).toBe(false)
      expect(resource.attributes['team']).toBe('orders')
      // What was sent already says nothing of it, and one process is one resource.
      expect(resource.attributes).not.toHaveProperty('cloud.region')
      expect(vi.getTimerCount()).toBe(0)
      expect(reports.lines).toEqual([
        expect.stringContaining('has not found out all of its attributes within 1500 ms'),
      ])
    } finally {
      vi.useRealTimers()
    }
  })

  test('whose attributes cannot be read by then costs those, and the app nothing', async () => {
    vi.useFakeTimers()
    try {
      const reports = said()
      let isBroken = false
      const given = {
        get attributes() {
          if (isBroken) throw new Error('of the detector')
          return { team: 'orders' }
        },
        asyncAttributesPending: true,
        waitForAsyncAttributes: () => new Promise<void>(() => {}),
      }
      const { resource } = readConfig({ resource: given, serviceName: 'shop' }, {})
      isBroken = true
      vi.advanceTimersByTime(1500)
      await resource.waitForAsyncAttributes?.()
      expect(resource.attributes).toMatchObject({
        'service.name': 'shop',
        'telemetry.sdk.name': 'throughline',
      })
      expect(reports.lines).toEqual([
        expect.stringContaining('the resource has failed'),
        expect.stringContaining('has not found out'),
      ])
    } finally {
      vi.useRealTimers()
    }
  })

  test('never says that the official SDK made the spans', () => {
    const name = { 'telemetry.sdk.name': 'opentelemetry' }
    expect(attributes({}, { resource: name })['telemetry.sdk.name']).toBe('throughline')
    expect(attributes({}, { resource: { attributes: name } as never })['telemetry.sdk.name']).toBe(
      'throughline',
    )
  })
})
