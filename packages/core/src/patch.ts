import { show } from './options.ts'

/**
 * Overrides of methods on one instance. Prototypes and modules are left as they are, so nothing else that uses the
 * library is touched; the mark on the instance is shared by all copies of this package, so wrapping twice is nothing.
 */
const PATCHES = Symbol.for('throughline.patches')

type Method = (this: unknown, ...args: never[]) => unknown

/** Whether an override is in force still. */
export interface Override {
  readonly isOn: boolean
}

interface Patch extends Override {
  readonly key: PropertyKey
  readonly before: PropertyDescriptor | undefined
  replacement: Method | undefined
  isOn: boolean
}

type Patched = object & { [PATCHES]?: Patch[] }

/** Whether this very object (not its prototype) has been wrapped. */
export function isTraced(target: object): boolean {
  return Object.hasOwn(target, PATCHES)
}

/**
 * Puts `wrap(original)` in place of the method, on this object only. It keeps the original's name and number of parameters, and
 * is enumerable only if the object had the method itself, enumerable.
 *
 * A `wrap` with a second parameter must itself pass calls through once `isOn` is false: this saves each call an intermediate
 * function, 0.1 µs.
 * @throws TypeError for an object that nobody may change.
 */
export function override<T extends object, K extends keyof T>(
  target: T,
  key: K,
  wrap: (original: T[K], state: Override) => T[K],
): void {
  if (!Object.isExtensible(target))
    throw new TypeError(
      `expected an object that may be changed, received ${show(target)} that is frozen; example: trace it before that`,
    )
  const original = target[key] as Method
  const patch: Patch = {
    key,
    before: Object.getOwnPropertyDescriptor(target, key),
    replacement: undefined,
    isOn: true,
  }
  const traced = wrap(target[key], patch) as Method
  const replacement = wrap.length > 1 ? traced : switched(patch, traced, original)
  patch.replacement = replacement
  Object.defineProperty(replacement, 'name', { value: original.name, configurable: true })
  Object.defineProperty(replacement, 'length', { value: original.length, configurable: true })
  Object.defineProperty(target, key, {
    value: replacement,
    writable: true,
    configurable: true,
    enumerable: patch.before?.enumerable ?? false,
  })
  patchesOf(target).push(patch)
}

function switched(patch: Override, traced: Method, original: Method): Method {
  return function (...args) {
    return Reflect.apply(patch.isOn ? traced : original, this, args)
  }
}

/** Undoes every wrap of this object. Where somebody has wrapped ours since, ours stays and only passes calls on. */
export function untrace(target: object): void {
  if (Object(target) !== target) {
    throw new TypeError(`untrace(): expected an object, received ${show(target)}; example: untrace(pool)`)
  }
  const patched = target as Patched
  if (!isTraced(target)) return
  for (const patch of patched[PATCHES]?.toReversed() ?? []) {
    patch.isOn = false
    if (Object.getOwnPropertyDescriptor(target, patch.key)?.value !== patch.replacement) continue
    if (patch.before === undefined) Reflect.deleteProperty(target, patch.key)
    else Object.defineProperty(target, patch.key, patch.before)
  }
  delete patched[PATCHES]
}

function patchesOf(target: Patched): Patch[] {
  if (!isTraced(target)) Object.defineProperty(target, PATCHES, { value: [], configurable: true })
  return target[PATCHES] as Patch[]
}

/** The symbol under which a library keeps something on its object, by its description: copies of a library differ in it. */
export function symbolOf(target: object, description: string): symbol | undefined {
  return Object.getOwnPropertySymbols(target).find((symbol) => symbol.description === description)
}
