import { context, override, type Context } from '@throughline/core'
import { abandon, type Command } from './command.ts'
import type { Client } from './connection.ts'

/** What ioredis sends by itself to set up a connection, and what it sends as soon as one is ready. */
const HANDSHAKE = new Set(['auth', 'client', 'hello', 'himport', 'info', 'monitor', 'readonly', 'select'])
const RESUMPTION = new Set(['client', 'psubscribe', 'readonly', 'select', 'ssubscribe', 'subscribe'])

/** What a Cluster sends to a node before a command that this is to answer by way of exception. */
const REDIRECTION = 'asking'
/** How the duplicate of a node's client is called by which a Cluster asks for its slots. */
const REFRESHER = 'ioredis-cluster(refresher)'

/** Whether a duplicate is one that ioredis made for itself, or one that monitors, which can issue no commands. */
export function isOfLibrary({ options: { monitor, connectionName } }: Client): boolean {
  return monitor === true || connectionName?.startsWith(REFRESHER) === true
}

/** Tells which commands are of ioredis itself. */
export interface OwnCommands {
  /** Whether one that is issued now is, and not of the app. */
  is(command: Command): boolean
  /** The client connects in this context, and sets up its connection there. */
  connects(scope: Context): void
}

export function ownCommands(client: Client): OwnCommands {
  let isResuming = false
  let isChecking = false
  // Most clients have begun to connect when they were made, just now.
  let connectScope = context.active()
  const connects = (scope: Context): void => void (connectScope = scope)

  // When a connection is ready ioredis restores what the last one had, at once, before anybody can be told.
  override(client, 'setStatus', (original) => {
    return function setStatus(this: unknown, ...args) {
      const [status] = args
      if (status === 'ready') {
        isResuming = true
        queueMicrotask(() => {
          isResuming = false
        })
      }
      if (status === 'end' || (status === 'ready' && !client.options.autoResendUnfulfilledCommands))
        abandonUnanswered(client)
      return Reflect.apply(original, this, args)
    }
  })

  if (!client.isCluster) {
    // What the app asks for meanwhile, it asks from elsewhere.
    const isSettingUp = (name: string): boolean => HANDSHAKE.has(name) && context.active() === connectScope
    return {
      connects,
      is: ({ name }) =>
        name === REDIRECTION ||
        (client.status === 'connect' ? isSettingUp(name) : isResuming && RESUMPTION.has(name)),
    }
  }

  // A Cluster asks for its state through itself; all else goes through clients of its own making.
  override(client as Required<Client>, 'readyCheck', (original) => {
    return function readyCheck(this: unknown, ...args) {
      isChecking = true
      try {
        return Reflect.apply(original, this, args)
      } finally {
        isChecking = false
      }
    }
  })
  return { connects, is: () => isChecking }
}

/** Commands of a connection before that ioredis neither sends again nor refuses, at once, have no end of their own. */
function abandonUnanswered({ prevCommandQueue }: Client): void {
  const dropped = prevCommandQueue?.toArray?.() ?? []
  if (dropped.length === 0) return
  queueMicrotask(() => {
    for (const { command } of dropped) abandon(command)
  })
}
