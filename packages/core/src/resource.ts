import type { Attributes } from '@opentelemetry/api'
import { randomUUID } from 'node:crypto'
import { readFileSync, realpathSync } from 'node:fs'
import { hostname } from 'node:os'
import { dirname, isAbsolute, join, relative } from 'node:path'
import { clearTimeout, setTimeout } from 'node:timers'
import { isAttribute, sayNoAttribute } from './attribute.ts'
import { report, reportOnce } from './report.ts'
import * as semconv from './semconv.ts'

/** Who made the spans; the shape of the official SDK's Resource. */
export interface Resource {
  readonly attributes: Attributes
  readonly schemaUrl?: string | undefined
  readonly asyncAttributesPending?: boolean | undefined
  waitForAsyncAttributes?(): Promise<void>
}

/** What other packages expect of the official SDK's resources beyond that, and so of this one. */
const MERGEABLE = {
  /** Asked by a resource that is merged with it. */
  getRawAttributes(this: Resource) {
    return Object.entries(this.attributes)
  },
  /** Both together; the other's value wins (resource SDK, merge). */
  merge(this: Resource, other: Resource | null | undefined): Resource {
    if (!other) return this
    const [own, others] = [this.schemaUrl || undefined, other.schemaUrl || undefined]
    // Two that differ cancel each other.
    const schemaUrl =
      own === undefined || others === undefined || own === others ? (others ?? own) : undefined
    return mergeable({ attributes: { ...this.attributes, ...other.attributes }, schemaUrl })
  },
}

function mergeable(resource: Resource): Resource {
  return Object.setPrototypeOf(resource, MERGEABLE) as Resource
}

/** The version of this package, as telemetry.sdk.version. */
export const VERSION = '0.1.0'

/** The app cannot override these: `opentelemetry` is reserved for the official SDK. */
const SDK: Attributes = {
  [semconv.TELEMETRY_SDK_LANGUAGE]: 'nodejs',
  [semconv.TELEMETRY_SDK_NAME]: 'throughline',
  [semconv.TELEMETRY_SDK_VERSION]: VERSION,
}

const UNKNOWN_SERVICE = 'unknown_service:node'
/** The placeholder name of the official SDK's `defaultResource()` and resources derived from it. */
const PLACEHOLDER = /^unknown_service(?=:|$)/

/**
 * The resource of this process: `given` wins over `fromEnvironment`, and both over what is detected. Neither the command
 * line nor the environment is recorded: they hold secrets.
 */
export function describeProcess(given: Attributes, fromEnvironment: Attributes): Resource {
  const chosen = { ...soundAttributes(fromEnvironment), ...soundAttributes(given) }
  const detected: Attributes = {
    [semconv.SERVICE_NAME]: chosen[semconv.SERVICE_NAME] ?? entryPackageName(),
    [semconv.SERVICE_INSTANCE_ID]: randomUUID(),
    [semconv.HOST_NAME]: hostname(),
    [semconv.PROCESS_PID]: process.pid,
    [semconv.PROCESS_RUNTIME_NAME]: 'nodejs',
    [semconv.PROCESS_RUNTIME_VERSION]: process.versions.node,
  }
  return mergeable({ attributes: { ...detected, ...chosen, ...SDK } })
}

/** The valid attributes. Drops unset variables and an empty service name silently; an invalid attribute is reported. */
function soundAttributes(attributes: Attributes): Attributes {
  const entries = Object.entries(attributes).filter(([name, value]) => {
    if (name === semconv.SERVICE_NAME && value === '') return false
    if (isAttribute(name, value)) return true
    sayNoAttribute(name, value, "resourceFromAttributes({ 'deployment.environment.name': 'staging' })")
    return false
  })
  return Object.fromEntries(entries)
}

/**
 * How long after the start spans wait for detectors. Cloud detectors answer within milliseconds if there is something to find,
 * and the end of a process is held up for two seconds at most.
 */
const DETECTION_MS = 1500
const OVERDUE = `the resource has not found out all of its attributes within ${DETECTION_MS} ms, and is exported without the others`

const UNREADABLE = 'the resource has failed to find out some of its attributes'

/**
 * The resource of this process with the attributes of the app's resource, some of which a detector may still be looking up;
 * `name` wins over all. What does not come in time is left out for good.
 */
export function extended(given: Resource, fromEnvironment: Attributes, name: Attributes): Resource {
  const { attributes } = describeProcess(name, fromEnvironment)
  /** What was found in time. */
  let final: Attributes | undefined
  const detected = given.asyncAttributesPending === true ? detection() : undefined

  // Does not reject: the spans are worth more than what a detector could not find out about their process.
  async function detection(): Promise<void> {
    let timer: NodeJS.Timeout | undefined
    const overdue = new Promise<void>((resolve) => {
      timer = setTimeout(() => {
        final = foundByNow()
        report('warn', OVERDUE)
        resolve()
      }, DETECTION_MS).unref()
    })
    try {
      await Promise.race([given.waitForAsyncAttributes?.(), overdue])
    } catch (error) {
      reportOnce('resource', 'warn', UNREADABLE, error)
    } finally {
      clearTimeout(timer)
    }
  }

  function found(): Attributes {
    const chosen = soundAttributes(given.attributes)
    if (PLACEHOLDER.test(String(chosen[semconv.SERVICE_NAME]))) delete chosen[semconv.SERVICE_NAME]
    return { ...attributes, ...chosen, ...name, ...SDK }
  }

  function foundByNow(): Attributes {
    try {
      return found()
    } catch (error) {
      reportOnce('resource', 'warn', UNREADABLE, error)
      return { ...attributes, ...name, ...SDK }
    }
  }

  return mergeable({
    get attributes() {
      return final ?? found()
    },
    get asyncAttributesPending() {
      return final === undefined && given.asyncAttributesPending
    },
    schemaUrl: given.schemaUrl,
    waitForAsyncAttributes: async () => detected,
  })
}

/** The `name` in the package.json nearest to the script that was started; a command of a package is a link to it. */
function entryPackageName(): string {
  const script = process.argv[1]
  if (script === undefined) return UNKNOWN_SERVICE
  const entry = realPath(script)
  return launchedName(entry) ?? nearestName(dirname(entry)) ?? UNKNOWN_SERVICE
}

/**
 * The name of the service that an installed package (PM2, fastify-cli, a test runner) has loaded: PM2 tells its script; for one
 * that is installed in a project it is where that runs. Installed elsewhere, it may be a program of its own, started anywhere.
 */
function launchedName(entry: string): string | undefined {
  const at = entry.search(/[\\/]node_modules[\\/]/)
  if (at === -1) return undefined
  const { pm_exec_path: script } = process.env
  if (script !== undefined) return nearestName(dirname(realPath(script)))
  const folder = currentFolder()
  if (folder === undefined) return undefined
  const fromProject = relative(entry.slice(0, at), realPath(folder))
  return fromProject.startsWith('..') || isAbsolute(fromProject) ? undefined : nearestName(folder)
}

/** Undefined where it has been deleted, as by a release that takes the place of the last one. */
function currentFolder(): string | undefined {
  try {
    return process.cwd()
  } catch {
    return undefined
  }
}

function nearestName(start: string): string | undefined {
  for (let folder = start; ; folder = dirname(folder)) {
    const name = packageName(join(folder, 'package.json'))
    if (name !== undefined || folder === dirname(folder)) return name
  }
}

function realPath(path: string): string {
  try {
    return realpathSync(path)
  } catch {
    return path
  }
}

function packageName(file: string): string | undefined {
  try {
    const { name } = JSON.parse(readFileSync(file, 'utf8')) as { name?: unknown }
    return typeof name === 'string' && name !== '' ? name : undefined
  } catch {
    return undefined
  }
}
