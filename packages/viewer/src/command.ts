import { readFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { collect, maxQuiet } from './collector.ts'
import type { Trace } from './collector.ts'
import { reasonOf } from './options.ts'
import { toOtlpJson } from './otlp-json.ts'
import { receive } from './receiver.ts'
import { terminal } from './terminal.ts'
import { waterfall } from './waterfall.ts'

type Signal = 'SIGINT' | 'SIGTERM'

/** What the command needs of a process; `process` is one. */
export type Host = {
  stdout: NodeJS.WritableStream & { isTTY?: boolean; columns?: number }
  stderr: { write: (text: string) => unknown; on: (event: 'error', listener: () => void) => unknown }
  env: Record<string, string | undefined>
  on: (signal: Signal, listener: () => void) => unknown
  off: (signal: Signal, listener: () => void) => unknown
}

type Settings = { port: number; host: string; quiet: number; json: boolean }

/** How it is run by who has not installed it: npx takes the one command that the package has. */
const COMMAND = 'npx @throughline/viewer'

const help = `Usage: ${COMMAND} [options]

Listens for OpenTelemetry traces (OTLP/HTTP, protobuf or JSON) and prints each one as a waterfall.

Options:
  --port <number>   port to listen on (default 4318; 0 takes a free one)
  --host <address>  address to listen on (default 127.0.0.1: this machine only)
  --quiet <ms>      print a trace when no span of it came for so long (default 6000)
  --json            print one line of OTLP/JSON per trace instead, for other tools
  --help            print this
  --version         print the version
`

const defaults = { port: '4318', host: '127.0.0.1', quiet: '6000' }

/**
 * The command `throughline`, given its arguments without node and script. Traces go to stdout, everything else to
 * stderr. Resolves to the exit code: 0 after SIGINT, SIGTERM or when stdout was closed, 1 when it cannot listen or write,
 * 2 for arguments that it does not know.
 */
export async function main(argv: readonly string[], host: Host): Promise<number> {
  // Who has closed stderr wants to hear no more; the traces go on.
  host.stderr.on('error', () => {})
  let settings: Settings | string
  try {
    settings = settingsOf(argv)
  } catch (error) {
    host.stderr.write(`throughline: ${reasonOf(error)}\n`)
    return 2
  }
  if (typeof settings !== 'string') return view(settings, host)
  host.stdout.on('error', () => {})
  return codeOf(await written(settings, host), host)
}

type WriteError = NodeJS.ErrnoException | null | undefined

/** Writes to stdout; resolves when that and all before it has been written, or with why not. */
function written(text: string, host: Host): Promise<WriteError> {
  return new Promise((resolve) => host.stdout.write(text, resolve))
}

/** To have stdout closed by its reader is an end like any other (`| head`); a full disk is said. */
function codeOf(failure: WriteError, host: Host): number {
  if (!failure || failure.code === 'EPIPE') return 0
  host.stderr.write(`throughline: cannot write to stdout: ${failure.message}\n`)
  return 1
}

/** The settings, or the text that was asked for instead. Throws an Error that says how to do it right. */
function settingsOf(argv: readonly string[]): Settings | string {
  const { values, positionals } = parse(argv)
  if (values.help) return help
  if (values.version) return `${version()}\n`
  const others = positionals.slice(positionals[0] === 'view' ? 1 : 0)
  if (others.length > 0) {
    const received = JSON.stringify(others.join(' '))
    throw new Error(`expected options only, received ${received}; example: ${COMMAND} --port 4318`)
  }
  if (values.host === '') throw new Error(expected('--host', 'an address', values.host, '--host 127.0.0.1'))
  return {
    port: integer('--port', values.port, 65_535, defaults.port),
    host: values.host,
    quiet: integer('--quiet', values.quiet, maxQuiet, defaults.quiet),
    json: values.json,
  }
}

function parse(argv: readonly string[]) {
  try {
    return parseArgs({
      args: [...argv],
      allowPositionals: true,
      options: {
        port: { type: 'string', default: defaults.port },
        host: { type: 'string', default: defaults.host },
        quiet: { type: 'string', default: defaults.quiet },
        json: { type: 'boolean', default: false },
        help: { type: 'boolean', short: 'h', default: false },
        version: { type: 'boolean', short: 'v', default: false },
      },
    })
  } catch (error) {
    const known = 'expected --port, --host, --quiet, --json, --help or --version'
    const received = `received ${argv.join(' ')}`
    // What Node says after that is of arguments which begin with a dash, and the viewer takes none.
    const [reason] = reasonOf(error).split(/\.\s/, 1)
    throw new Error(`${reason}\n${known}; ${received}; example: ${COMMAND} --port 4318`, {
      cause: error,
    })
  }
}

function integer(option: string, text: string, most: number, example: string): number {
  const number = /^\d{1,10}$/.test(text) ? Number(text) : Infinity
  if (number > most)
    throw new Error(expected(option, `an integer from 0 to ${most}`, text, `${option} ${example}`))
  return number
}

function expected(what: string, wanted: string, received: string, example: string): string {
  return `${what}: expected ${wanted}, received ${JSON.stringify(received)}; example: ${example}`
}

function version(): string {
  const manifest: unknown = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'))
  return (manifest as { version: string }).version
}

/** Receive → collect → print, until a signal comes or nobody reads any more. */
async function view(settings: Settings, host: Host): Promise<number> {
  const { quiet, json } = settings
  const collector = collect({ quiet, onTrace: (trace) => print(trace, json, host) })
  const ended = ending(host)
  try {
    const receiver = await receive({ port: settings.port, host: settings.host, onSpans: collector.add })
    host.stderr.write(`throughline: listening on ${receiver.url}/v1/traces, Ctrl-C ends\n`)
    const reason = await ended.promise
    await receiver.close()
    if (reason !== 'signal') return codeOf(reason, host)
    collector.flush()
    return codeOf(await written('', host), host)
  } catch (error) {
    host.stderr.write(`throughline: ${reasonOf(error)}\n`)
    return 1
  } finally {
    ended.stop()
    collector.close()
  }
}

/**
 * Resolves at the first signal, and with the error when stdout takes no more. The first signal takes our listeners off, so
 * that a second one ends the process at once.
 */
function ending(host: Host): { promise: Promise<'signal' | WriteError>; stop: () => void } {
  const signaled = new AbortController()
  const onSignal = (): void => signaled.abort()
  const stop = (): void => {
    host.off('SIGINT', onSignal)
    host.off('SIGTERM', onSignal)
  }
  const promise = new Promise<'signal' | WriteError>((resolve) => {
    signaled.signal.addEventListener('abort', () => resolve('signal'))
    // The listener stays for good: what is written after the end fails too, and would end the process noisily.
    host.stdout.on('error', resolve)
  })
  signaled.signal.addEventListener('abort', stop)
  host.on('SIGINT', onSignal)
  host.on('SIGTERM', onSignal)
  return { promise, stop }
}

function print(trace: Trace, json: boolean, host: Host): void {
  for (const remark of remarks(trace)) {
    const line = `throughline: trace ${trace.traceId}: ${remark}\n`
    if (json) host.stderr.write(line)
    else host.stdout.write(line)
  }
  // Of a trace that was full already there is nothing new to be seen.
  if (trace.revision > 1 && trace.lateSpans === 0) return
  if (json) host.stdout.write(`${toOtlpJson(trace.spans)}\n`)
  else host.stdout.write(`${waterfall(trace.spans, terminal(host.stdout, host.env))}\n\n`)
}

/** What the picture cannot say of itself. */
function remarks({ revision, lateSpans, droppedSpans, forgotten }: Trace): string[] {
  return [
    forgotten && 'earlier spans of it are no longer held; these are the late ones',
    revision > 1 && lateSpans > 0 && `updated, ${lateSpans} late ${lateSpans === 1 ? 'span' : 'spans'}`,
    droppedSpans > 0 && `too large, ${droppedSpans} ${droppedSpans === 1 ? 'span' : 'spans'} dropped`,
  ].filter((remark) => remark !== false)
}
