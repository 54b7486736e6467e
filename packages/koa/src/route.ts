import type { Context } from 'koa'

/** A layer of @koa/router or koa-router: a route, or middleware of the router, which has no methods. */
export interface Layer {
  readonly path: string | RegExp
  readonly regexp: RegExp
  readonly methods: readonly string[]
}

/** What koa-mount cuts off, and of which path. */
interface Mount {
  readonly prefix: string
  readonly path: string
}

interface Mounts {
  /** What koa-mount has set last. */
  prefix: unknown
  readonly list: Mount[]
}

const MOUNTS = Symbol('throughline.mounts')

/** What the routers leave on the context; and the mounts that the request went through. */
interface Routed {
  readonly matched?: readonly Layer[]
  readonly _matchedRoute?: Layer['path']
  readonly captures?: readonly (string | undefined)[]
  [MOUNTS]?: Mounts
}

const NONE: readonly never[] = []

/** Whether any request has ever come through a mount. Looking for a symbol that no context has costs 0.2 µs. */
let hasMounts = false

/** The pattern of the route, with the mounts of koa-mount that it is in. */
export function routeOf(ctx: Context & Routed): string | undefined {
  const layer = layerOf(ctx)
  if (layer === undefined) return undefined
  const mount = mountOf(ctx, layer)
  const path = String(layer.path)
  return path === '/' && mount !== '' ? mount : mount + path
}

// `_matchedRoute` is the path of the layer that was entered last. That may be middleware of the router, which has
// answered or thrown: then the first route that would take the request stands for it.
function layerOf({ matched = NONE, _matchedRoute: entered, method }: Context & Routed): Layer | undefined {
  let first: Layer | undefined
  for (const layer of matched) {
    if (!layer.methods.includes(method)) continue
    if (layer.path === entered) return layer
    first ??= layer
  }
  return first
}

/**
 * Notes the mounts that requests of this app go through: koa-mount sets `mountPath` just before it cuts that off the path,
 * and leaves it behind even when what is mounted has passed the request on.
 */
export function noteMounts(context: object): void {
  if ('mountPath' in context || !Object.isExtensible(context)) return
  Object.defineProperty(context, 'mountPath', {
    configurable: true,
    get: () => undefined,
    set(this: Context & Routed, prefix: unknown) {
      // A value that the app gives to all of its contexts is not a mount.
      if (this === context) {
        Object.defineProperty(this, 'mountPath', {
          configurable: true,
          enumerable: true,
          writable: true,
          value: prefix,
        })
        return
      }
      note(this, mountsOf(this, prefix), prefix)
    },
  })
}

function mountsOf(ctx: Context & Routed, prefix: unknown): Mount[] {
  const mounts: Mounts = { prefix, list: [] }
  hasMounts = true
  Object.defineProperty(ctx, MOUNTS, { value: mounts })
  Object.defineProperty(ctx, 'mountPath', MOUNT_PATH)
  return mounts.list
}

/** One for all contexts: V8 keeps one that has an accessor of its own in a dictionary. */
const MOUNT_PATH: PropertyDescriptor & ThisType<Context & Routed> = {
  configurable: true,
  enumerable: true,
  get() {
    return this[MOUNTS]?.prefix
  },
  set(next: unknown) {
    const mounts = this[MOUNTS]
    if (mounts === undefined) return
    mounts.prefix = next
    note(this, mounts.list, next)
  },
}

/** A proxy may send the whole URL. */
const ORIGIN = /^[a-z][a-z0-9+.-]*:\/\/[^/?]*/i

/** Notes, as one, the mounts that an app's first request went through before `tracing()`, which is inside of them. */
export function noteEarlier(ctx: Context & Routed): void {
  if (!Object.hasOwn(ctx, 'mountPath') || ctx[MOUNTS] !== undefined) return
  const { path } = ctx
  const [whole = ''] = ctx.originalUrl.replace(ORIGIN, '').split('?')
  const mounts = mountsOf(ctx, ctx['mountPath'])
  // '/api' has become '/'.
  const cut = whole.endsWith(path) ? whole.length - path.length : path === '/' ? whole.length : 0
  if (cut > 0) mounts.push({ prefix: whole.slice(0, cut), path: whole })
}

function note({ path }: Context, mounts: Mount[], prefix: unknown): void {
  if (typeof prefix === 'string') mounts.push({ prefix, path })
}

// The route's mount is known by the path that is left there: the route matches it, and has taken the same from it.
function mountOf(ctx: Context & Routed, layer: Layer): string {
  const mounts = hasMounts ? ctx[MOUNTS]?.list : undefined
  if (mounts === undefined) return ''
  const { captures = NONE } = ctx
  let likely: string | undefined
  for (let index = mounts.length - 1; index >= -1; index -= 1) {
    const mount = mounts[index]
    // Outside of all mounts is the path that the first of them found.
    const taken = (mount === undefined ? (mounts[0]?.path ?? '') : within(mount)).match(layer.regexp)
    if (taken === null) continue
    const prefix = prefixAt(mounts, index)
    if (taken.slice(1).every((each, i) => each === captures[i])) return prefix
    likely ??= prefix
  }
  return likely ?? ''
}

function within({ prefix, path }: Mount): string {
  return path.slice(prefix.length) || '/'
}

/** The prefixes of a mount and of those around it: a mount is in another one if it found the path that is left in there. */
function prefixAt(mounts: readonly Mount[], index: number): string {
  let [prefix, inner] = ['', mounts[index]]
  for (let i = index; i >= 0; i -= 1) {
    const mount = mounts[i] as Mount
    if (mount !== inner && within(mount) !== inner?.path) continue
    prefix = mount.prefix.replace(/\/$/, '') + prefix
    inner = mount
  }
  return prefix
}
