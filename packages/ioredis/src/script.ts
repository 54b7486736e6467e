import { isError } from '@throughline/core'
import type { Command } from './command.ts'

/** A script of `defineCommand` that the server did not know, with its call, if that is one of its own. */
interface Unknown {
  readonly command: Command
  readonly owner: Watcher | undefined
}

export interface Watcher {
  watch(command: Command, isAgain?: boolean): void
}

/**
 * Scripts that the server did not know by their digests. ioredis sends each again, as another command with the same
 * arguments, a few microtasks after the refusal: to the app the two are one.
 */
export class UnknownScripts {
  readonly #unknown: Unknown[] = []

  add(command: Command, owner: Watcher | undefined): void {
    this.#unknown.push({ command, owner })
  }

  /** The refused command that this one repeats, returned once. */
  take(command: Command): Unknown | undefined {
    if (this.#unknown.length === 0) return undefined
    const index = this.#unknown.findIndex((unknown) => isAgain(command, unknown.command))
    return index === -1 ? undefined : this.#unknown.splice(index, 1)[0]
  }
}

/** Whether ioredis is about to send this command again since the server does not know the script. */
export function isUnknownScript(command: Command, error: unknown): boolean {
  return isOfScript(command) && saysNoScript(error)
}

function saysNoScript(error: unknown): boolean {
  try {
    return isError(error) && error.message.includes('NOSCRIPT')
  } catch {
    // The app's own, whose message is none.
    return false
  }
}

/** Whether it is a command of `defineCommand`: each script has a class of its own, made of Command. */
export function isOfScript(command: Command): boolean {
  const ofClass = Object.getPrototypeOf(command) as object | null
  const base = (ofClass && Object.getPrototypeOf(ofClass)) as object | null
  return base !== null && 'toWritable' in base
}

/** Of the first arguments one may be the digest, the other the text. */
function isAgain(command: Command, first: Command): boolean {
  if (command.constructor !== first.constructor || command.args.length !== first.args.length) return false
  return command.args.every((arg, index) => index === 0 || isSame(arg, first.args[index]))
}

function isSame(one: unknown, other: unknown): boolean {
  return one === other || (Buffer.isBuffer(one) && Buffer.isBuffer(other) && one.equals(other))
}
