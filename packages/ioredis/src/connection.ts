import { override, semconv, wantsOldNames, type Attributes, type NamedAttributes } from '@throughline/core'
import { withOldDatabaseNames } from '@throughline/core/database'
import type { Command } from './command.ts'
import { UnknownScripts } from './script.ts'

const DEFAULT_PORT = 6379
const SYSTEM = 'redis'
/** The only database of a Cluster. */
const ONLY_DATABASE = '0'

type Method = (this: unknown, ...args: unknown[]) => unknown

export interface Stream {
  readonly remoteAddress?: string
  readonly remotePort?: number
}

interface Queue {
  toArray?(): { readonly command: Command }[]
}

/** What a Redis and a Cluster have in common, with properties that their typings lack. */
export interface Client {
  readonly status: string
  readonly isCluster: boolean
  readonly options: Readonly<{
    host?: string
    port?: number
    path?: string
    db?: number
    sentinels?: unknown
    monitor?: boolean
    enableAutoPipelining?: boolean
    connectionName?: string
    autoResendUnfulfilledCommands?: boolean
    maxRetriesPerRequest?: number | null
    /** What ioredis 6 prepares for HIMPORT. */
    himportFieldsets?: readonly { readonly name: unknown }[]
    /** Of a Cluster: the options of its nodes. */
    redisOptions?: { readonly maxRetriesPerRequest?: number | null }
  }>
  /** How many times it has begun to connect. */
  readonly connectionEpoch?: number
  /** Its own state of the connection: the database that is selected. */
  readonly condition?: { readonly select?: number } | null
  readonly stream?: Stream | null
  /** Of a Redis: commands that have been sent. */
  readonly commandQueue?: Queue | null
  /** Commands that the previous connection left unanswered, while they may be sent again. */
  readonly prevCommandQueue?: Queue | null
  readonly _autoPipelines?: ReadonlyMap<string, unknown>
  connect: Method
  sendCommand: Method
  pipeline: Method
  multi: Method
  duplicate: Method
  emit: Method
  setStatus: Method
  /** Of a Redis: called as soon as it has connected. */
  resetCommandQueue?: Method
  /** Of a Redis: tells the app of an error of its connection, if that listens. */
  silentEmit?: Method
  /** Of a Cluster: the clients of its nodes. */
  nodes?: () => readonly Client[]
  /** Of a Redis, and of a Cluster: its readiness check. */
  _readyCheck?: Method
  readyCheck?: Method
  /** Of a Cluster: what runs a callback when its slots are known. */
  delayUntilReady?: Method
}

/** Where a socket leads: the server's name, and the address that it was reached at. */
interface Place {
  readonly address: string | undefined
  readonly port: number | undefined
  readonly peerAddress: string | undefined
  readonly peerPort: number | undefined
}

/** For a call that was not written to any node of a Cluster. */
const NOWHERE: Place = { address: undefined, port: undefined, peerAddress: undefined, peerPort: undefined }

/** A traced client, and what spans say of where it is connected to. */
export class Connection {
  readonly client: Client
  readonly unknownScripts = new UnknownScripts()
  readonly #hasOldNames = wantsOldNames('database')
  /** By the sockets of the nodes of a Cluster, between which its commands go to and fro. */
  readonly #places = new WeakMap<Stream, Place>()
  #stream: Stream | null | undefined = undefined
  #place: Place | undefined = undefined
  #selected: unknown = undefined
  #namespaceName = ''
  #trouble: { readonly error: unknown; readonly epoch: number | undefined } | undefined = undefined

  constructor(client: Client) {
    this.client = client
    if (client.silentEmit === undefined) return
    const noteTrouble = (error: unknown) => {
      this.#trouble = { error, epoch: client.connectionEpoch }
    }
    override(client as Required<Client>, 'silentEmit', (original) => {
      return function silentEmit(this: unknown, ...args) {
        const [event, error] = args
        if (event === 'error') noteTrouble(error)
        return Reflect.apply(original, this, args)
      }
    })
  }

  /** Why this connection, or the attempt to make it, failed. Commands learn only that it is closed. */
  get trouble(): unknown {
    return this.#trouble?.epoch === this.client.connectionEpoch ? this.#trouble?.error : undefined
  }

  /** Whether the server of a call is known only after it. */
  get isCluster(): boolean {
    return this.client.isCluster
  }

  /** Whether its commands wait for ever, as job queues configure their workers' connections. */
  get isOfWorker(): boolean {
    const { maxRetriesPerRequest, redisOptions } = this.client.options
    return maxRetriesPerRequest === null || redisOptions?.maxRetriesPerRequest === null
  }

  /** The attributes of every span of this client; without a text if none is to be shown. */
  attributes(operation: string, text: string | undefined): Attributes {
    const place = this.#placeOf(this.isCluster ? undefined : this.client.stream)
    const { address, port, peerAddress, peerPort } = place
    // One literal with what nearly every command has, its keys written out: see NamedAttributes.
    if (
      text !== undefined &&
      peerAddress !== undefined &&
      peerPort !== undefined &&
      address !== undefined &&
      (port === undefined || port === DEFAULT_PORT) &&
      !this.#hasOldNames
    ) {
      return {
        'db.system.name': SYSTEM,
        'db.namespace': this.#namespace(),
        'db.operation.name': operation,
        'db.query.text': text,
        'network.peer.address': peerAddress,
        'network.peer.port': peerPort,
        'server.address': address,
      } satisfies NamedAttributes
    }
    const attributes: Attributes = {
      [semconv.DB_SYSTEM_NAME]: SYSTEM,
      [semconv.DB_NAMESPACE]: this.#namespace(),
      [semconv.DB_OPERATION_NAME]: operation,
    }
    if (text !== undefined) attributes[semconv.DB_QUERY_TEXT] = text
    addPeer(attributes, place)
    addServer(attributes, place)
    return this.#withOldNamesIfWanted(attributes)
  }

  /** What a span says of the server that a call went to, by the socket that this was written to. */
  reached(stream: Stream | null | undefined): Attributes {
    const attributes: Attributes = {}
    const place = this.#placeOf(stream)
    addPeer(attributes, place)
    addServer(attributes, place)
    return this.#withOldNamesIfWanted(attributes)
  }

  /** What the duration of a call is counted by. */
  dimensions(operation: string, stream: Stream | null | undefined): Attributes {
    const attributes: Attributes = {
      [semconv.DB_SYSTEM_NAME]: SYSTEM,
      [semconv.DB_NAMESPACE]: this.#namespace(),
      [semconv.DB_OPERATION_NAME]: operation,
    }
    addServer(attributes, this.#placeOf(stream))
    return attributes
  }

  #namespace(): string {
    if (this.isCluster) return ONLY_DATABASE
    const { condition, options } = this.client
    const selected = condition?.select ?? options.db ?? 0
    // To make text of a number costs 0.1 µs.
    if (selected !== this.#selected) {
      this.#namespaceName = String(selected)
      this.#selected = selected
    }
    return this.#namespaceName
  }

  #withOldNamesIfWanted(attributes: Attributes): Attributes {
    return this.#hasOldNames ? withOldDatabaseNames(attributes, SYSTEM) : attributes
  }

  /** A socket's address and port are read once: its getters take 1 µs. */
  #placeOf(stream: Stream | null | undefined): Place {
    if (this.isCluster) return stream ? (this.#places.get(stream) ?? this.#lookAt(stream)) : NOWHERE
    if (this.#place === undefined || stream !== this.#stream || this.#place.peerPort === undefined) {
      this.#place = this.#lookAt(stream)
      this.#stream = stream
    }
    return this.#place
  }

  #lookAt(stream: Stream | null | undefined): Place {
    const { remoteAddress, remotePort } = stream ?? {}
    const isConnected = remoteAddress !== undefined && remotePort !== undefined
    const peerAddress = isConnected ? remoteAddress : undefined
    const peerPort = isConnected ? remotePort : undefined
    const { address, port } = this.#serverOf(stream, peerAddress, peerPort)
    const place = { address, port, peerAddress, peerPort }
    if (this.isCluster && stream && isConnected) this.#places.set(stream, place)
    return place
  }

  #serverOf(
    stream: Stream | null | undefined,
    peerAddress: string | undefined,
    peerPort: number | undefined,
  ): Pick<Place, 'address' | 'port'> {
    const { client } = this
    if (client.isCluster) {
      const node = client.nodes?.().find((candidate) => candidate.stream === stream)
      return { address: node?.options.host ?? peerAddress, port: node?.options.port ?? peerPort }
    }
    const { path, sentinels, host = 'localhost', port = DEFAULT_PORT } = client.options
    // Behind sentinels the server is whichever they name.
    if (sentinels) return { address: peerAddress, port: peerPort }
    return path ? { address: path, port: undefined } : { address: host, port }
  }
}

function addPeer(attributes: Attributes, { peerAddress, peerPort }: Place): void {
  if (peerAddress === undefined || peerPort === undefined) return
  attributes[semconv.NETWORK_PEER_ADDRESS] = peerAddress
  attributes[semconv.NETWORK_PEER_PORT] = peerPort
}

function addServer(attributes: Attributes, { address, port }: Place): void {
  if (address === undefined) return
  attributes[semconv.SERVER_ADDRESS] = address
  if (port !== undefined && port !== DEFAULT_PORT) attributes[semconv.SERVER_PORT] = port
}
