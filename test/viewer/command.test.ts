import { EventEmitter, once } from 'node:events'
import { readFileSync } from 'node:fs'
import { PassThrough, Writable } from 'node:stream'
import { toOtlpJson, waterfall } from '@throughline/viewer'
import type { Span } from '@throughline/viewer'
import { describe, expect, it } from 'vitest'
import { main } from '../../packages/viewer/src/command.ts'
import { spansFromJson } from '../../packages/viewer/src/request.ts'
import { checkout, span, traceId } from './sample.ts'

type Terminal = { isTTY?: boolean; columns?: number; env?: Record<string, string> }

/** The command as a shell runs it, with a terminal, signals and outputs of its own. */
function throughline(argv: string[], { env = {}, ...terminal }: Terminal = {}) {
  const signals = new EventEmitter()
  const stdout = Object.assign(new PassThrough(), terminal)
  const stderr = new PassThrough()
  const written = { out: '', err: '' }
  stdout.on('data', (chunk: Buffer) => (written.out += chunk.toString()))
  stderr.on('data', (chunk: Buffer) => (written.err += chunk.toString()))
  const code = main(argv, {
    stdout,
    stderr,
    env,
    on: (signal, listener) => signals.on(signal, listener),
    off: (signal, listener) => signals.off(signal, listener),
  })

  /** Until what was written holds `text`. */
  async function says(where: 'out' | 'err', text: string): Promise<void> {
    if (written[where].includes(text)) return
    await once(where === 'out' ? stdout : stderr, 'data')
    await says(where, text)
  }

  async function send(spans: readonly Span[]): Promise<void> {
    await says('err', 'listening on')
    const url = /http:\S+/.exec(written.err)?.[0].replace(/,$/, '') ?? ''
    const headers = { 'content-type': 'application/json' }
    const answer = await fetch(url, { method: 'POST', headers, body: toOtlpJson(spans) })
    expect(answer.status).toBe(200)
  }

  return { code, signals, stdout, stderr, written, says, send }
}

const anyPort = ['--port', '0']

describe('throughline', () => {
  it('prints a trace when it has been quiet, and says on stderr where it listens', async () => {
    const { code, signals, written, says, send } = throughline([...anyPort, '--quiet', '1'])
    await send(checkout())
    await says('out', 'slowest')
    signals.emit('SIGINT')
    expect(await code).toBe(0)
    expect(written.out).toBe(`${waterfall(checkout())}\n\n`)
    expect(written.err).toMatch(
      /^throughline: listening on http:\/\/127\.0\.0\.1:\d+\/v1\/traces, Ctrl-C ends\n$/,
    )
  })

  it('is its command view', async () => {
    const { code, signals, written, send } = throughline(['view', ...anyPort])
    await send(checkout())
    signals.emit('SIGTERM')
    expect(await code).toBe(0)
    expect(written.out).toBe(`${waterfall(checkout())}\n\n`)
  })

  it('prints what waits before it ends', async () => {
    const { code, signals, written, send } = throughline([...anyPort, '--quiet', '60000', '--json'])
    await send(checkout())
    expect(written.out).toBe('')
    signals.emit('SIGINT')
    expect(await code).toBe(0)
    expect(written.out).not.toBe('')
  })

  it('leaves a second signal to the system, which ends it at once', async () => {
    const { code, signals, says } = throughline(anyPort)
    await says('err', 'listening on')
    expect(signals.listenerCount('SIGINT') + signals.listenerCount('SIGTERM')).toBe(2)
    signals.emit('SIGINT')
    expect(signals.listenerCount('SIGINT') + signals.listenerCount('SIGTERM')).toBe(0)
    await code
  })

  it('prints one line of OTLP/JSON per trace with --json, and nothing else on stdout', async () => {
    const { code, signals, written, send } = throughline([...anyPort, '--json'])
    const other = span(1, 'shop', 'other', [0, 1], { traceId: '0af7651916cd43dd8448eb211c80319c' })
    await send([...checkout(), other])
    signals.emit('SIGINT')
    await code
    const lines = written.out.trimEnd().split('\n')
    expect(lines).toHaveLength(2)
    expect(spansFromJson(Buffer.from(lines[0] ?? ''))).toEqual(expect.arrayContaining(checkout()))
    expect(spansFromJson(Buffer.from(lines[1] ?? ''))).toEqual([other])
  })

  it('prints a trace again, whole, and says so, when spans come late', async () => {
    const { code, signals, written, says, send } = throughline([...anyPort, '--quiet', '1'])
    const spans = checkout()
    await send(spans.slice(0, 9))
    await says('out', 'slowest')
    await send(spans.slice(9))
    await says('out', 'db: INSERT')
    signals.emit('SIGINT')
    await code
    const remark = `throughline: trace ${traceId}: updated, 1 late span\n`
    expect(written.out).toBe(`${waterfall(spans.slice(0, 9))}\n\n${remark}${waterfall(spans)}\n\n`)
  })

  it('says of late spans on stderr with --json', async () => {
    const { code, signals, written, says, send } = throughline([...anyPort, '--quiet', '1', '--json'])
    const spans = checkout()
    await send(spans.slice(0, 8))
    await says('out', '\n')
    await send(spans.slice(8))
    await says('err', `throughline: trace ${traceId}: updated, 2 late spans\n`)
    signals.emit('SIGINT')
    await code
    expect(written.out.trimEnd().split('\n')).toHaveLength(2)
  })

  it('prints a trace that is full no more, but says what it lost', async () => {
    const { code, signals, written, says, send } = throughline([...anyPort, '--quiet', '1', '--json'])
    const more = (id: number) => span(id, 'worker', 'poll', [id, id + 1])
    await send(Array.from({ length: 10_001 }, (_, id) => more(id + 1)))
    await says('out', '\n')
    await send([more(10_002)])
    await says('err', `throughline: trace ${traceId}: too large, 2 spans dropped\n`)
    signals.emit('SIGINT')
    await code
    expect(written.out.trimEnd().split('\n')).toHaveLength(1)
    expect(written.err).not.toContain('updated')
  })

  it('ends quietly when nobody reads any more', async () => {
    const { code, stdout, written, says, send } = throughline([...anyPort, '--quiet', '1'])
    await says('err', 'listening on')
    stdout.destroy(Object.assign(new Error('write EPIPE'), { code: 'EPIPE' }))
    expect(await code).toBe(0)
    expect(written.err).not.toContain('EPIPE')
    await expect(send(checkout())).rejects.toThrow('fetch failed')
  })

  it('says why it ends when what it prints cannot be written', async () => {
    const { code, stdout, written, says } = throughline(anyPort)
    await says('err', 'listening on')
    stdout.destroy(Object.assign(new Error('ENOSPC: no space left on device, write'), { code: 'ENOSPC' }))
    expect(await code).toBe(1)
    expect(written.err).toContain('throughline: cannot write to stdout: ENOSPC: no space left on device')
  })

  it('says so too when that is what was still waiting at the signal', async () => {
    const { code, signals, stdout, written, says, send } = throughline(anyPort)
    await says('err', 'listening on')
    await send(checkout())
    stdout._transform = (_chunk, _encoding, done) =>
      done(Object.assign(new Error('ENOSPC: no space left on device, write'), { code: 'ENOSPC' }))
    signals.emit('SIGINT')
    expect(await code).toBe(1)
    expect(written.err).toContain('throughline: cannot write to stdout: ENOSPC: no space left on device')
  })

  it('goes on when nobody reads what it says on stderr', async () => {
    const { code, signals, stderr, written, says, send } = throughline([...anyPort, '--json'])
    await says('err', 'listening on')
    stderr.destroy(Object.assign(new Error('write EPIPE'), { code: 'EPIPE' }))
    await send(checkout())
    signals.emit('SIGINT')
    expect(await code).toBe(0)
    expect(written.out).toContain(traceId)
  })

  it.each([
    ['EPIPE', 0, ''],
    ['ENOSPC', 1, 'throughline: cannot write to stdout: no write\n'],
  ])('whose help meets %s ends with %i', async (reason, expectedCode, said) => {
    const stdout = new Writable({
      write: (_chunk, _encoding, done) => done(Object.assign(new Error('no write'), { code: reason })),
    })
    const stderr = new PassThrough()
    const off = () => {}
    expect(await main(['--help'], { stdout, stderr, env: {}, on: off, off })).toBe(expectedCode)
    expect(stderr.read()?.toString() ?? '').toBe(said)
  })
})

async function printed(terminal: Terminal): Promise<string> {
  const { code, signals, written, send } = throughline(anyPort, terminal)
  await send(checkout())
  signals.emit('SIGINT')
  await code
  return written.out
}

describe('the terminal', () => {
  const plain = `${waterfall(checkout(), { width: 72 })}\n\n`
  const colored = `${waterfall(checkout(), { width: 72, color: true })}\n\n`

  it.each([
    ['is a terminal', true, {}, colored],
    ['is no terminal', false, {}, plain],
    ['NO_COLOR is set', true, { NO_COLOR: '1' }, plain],
    ['NO_COLOR is set but empty', true, { NO_COLOR: '' }, colored],
    ['FORCE_COLOR is set', false, { FORCE_COLOR: '1' }, colored],
    ['FORCE_COLOR is set but empty', false, { FORCE_COLOR: '' }, colored],
    ['FORCE_COLOR is 0', true, { FORCE_COLOR: '0' }, plain],
    ['both are set', true, { NO_COLOR: '1', FORCE_COLOR: '1' }, plain],
    ['TERM is dumb', true, { TERM: 'dumb' }, plain],
  ])('decides on width and colour when it %s', async (_, isTTY, env: Record<string, string>, expected) => {
    expect(await printed({ isTTY, columns: 72, env })).toBe(expected)
  })

  it('that tells no width, or none, is a hundred columns wide', async () => {
    expect(await printed({ columns: 0 })).toBe(`${waterfall(checkout())}\n\n`)
  })
})

describe('help', () => {
  it.each(['--help', '-h'])('is printed for %s', async (flag) => {
    const { code, written } = throughline(['view', flag])
    expect(await code).toBe(0)
    for (const option of ['--port', '--host', '--quiet', '--json', '--help', '--version']) {
      expect(written.out).toContain(option)
    }
    expect(written.err).toBe('')
  })

  it('names the command as the README does, which is the one that npx finds by the name of the package', async () => {
    const at = (file: string) =>
      readFileSync(new URL(`../../packages/viewer/${file}`, import.meta.url), 'utf8')
    const { name, bin } = JSON.parse(at('package.json')) as { name: string; bin: object }
    const { code, written } = throughline(['--help'])
    expect(await code).toBe(0)
    expect(written.out).toMatch(`Usage: npx ${name} [options]\n`)
    expect(at('README.md')).toContain(`\nnpx ${name}\n`)
    expect(Object.keys(bin)).toHaveLength(1)
  })

  it.each(['--version', '-v'])('tells the version for %s', async (flag) => {
    const manifest: { version: string } = JSON.parse(
      readFileSync(new URL('../../packages/viewer/package.json', import.meta.url), 'utf8'),
    )
    const { code, written } = throughline([flag])
    expect(await code).toBe(0)
    expect(written.out).toBe(`${manifest.version}\n`)
  })
})

describe('a mistake', () => {
  it.each([
    ['--port x', '--port: expected an integer from 0 to 65535, received "x"; example: --port 4318'],
    ['--port 65536', '--port: expected an integer from 0 to 65535, received "65536"; example: --port 4318'],
    ['--port=-1', '--port: expected an integer from 0 to 65535, received "-1"; example: --port 4318'],
    ['--port=', '--port: expected an integer from 0 to 65535, received ""; example: --port 4318'],
    [
      '--quiet 1.5',
      '--quiet: expected an integer from 0 to 2147483647, received "1.5"; example: --quiet 6000',
    ],
    ['--quiet 9999999999', '--quiet: expected an integer from 0 to 2147483647, received "9999999999"'],
    ['--host=', '--host: expected an address, received ""; example: --host 127.0.0.1'],
    ['4318', 'expected options only, received "4318"; example: npx @throughline/viewer --port 4318\n'],
    ['view twice', 'expected options only, received "twice"; example: '],
    [
      '--prot 1',
      "Unknown option '--prot'\nexpected --port, --host, --quiet, --json, --help or --version; received --prot 1; example: ",
    ],
    ['--port -1', "Option '--port' argument is ambiguous\nexpected --port"],
    ['--port', 'received --port; example: npx @throughline/viewer --port 4318'],
    ['--json=yes', 'received --json=yes; example: npx @throughline/viewer --port 4318'],
  ])('(%s) is explained on stderr, with exit code 2', async (line, message) => {
    const { code, written } = throughline(line.split(' '))
    expect(await code).toBe(2)
    expect(written.err).toMatch(/^throughline: /)
    expect(written.err).toContain(message)
    expect(written.out).toBe('')
  })

  it('of a port that is taken names it and the way out, with exit code 1', async () => {
    const first = throughline(anyPort)
    await first.says('err', 'listening on')
    const port = /:(\d+)\/v1/.exec(first.written.err)?.[1] ?? ''
    const second = throughline(['--port', port])
    expect(await second.code).toBe(1)
    expect(second.written.err).toContain(`port ${port} on 127.0.0.1 is already in use`)
    expect(second.written.err).toContain('--port ')
    expect(second.signals.eventNames()).toEqual([])
    first.signals.emit('SIGINT')
    await first.code
  })
})
