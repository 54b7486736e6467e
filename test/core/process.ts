import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { onTestFinished } from 'vitest'

const home = fileURLToPath(new URL('../..', import.meta.url))

export interface Running {
  /** Resolves when the app has printed this line. */
  printed(line: string): Promise<void>
  kill(signal: NodeJS.Signals): void
  /** Reads no more of what it says there. */
  deafen(stream: 'stdout' | 'stderr'): void
  /** How the process ended, and all that it said. */
  ended: Promise<{ code: number | null; signal: NodeJS.Signals | null; stdout: string; stderr: string }>
}

/** Runs this code as an app of its own: plain Node, the built package, nothing of the test runner's environment. */
export function app(code: string, environment: Record<string, string> = {}): Running {
  const child = spawn(process.execPath, ['--input-type=module', '-e', code], {
    cwd: home,
    env: { PATH: process.env['PATH'] ?? '', ...environment },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  onTestFinished(() => {
    child.kill('SIGKILL')
  })
  const lines: string[] = []
  let stderr = ''
  child.stderr.on('data', (chunk: Buffer) => (stderr += String(chunk)))
  const output = createInterface({ input: child.stdout })
  output.on('line', (line) => lines.push(line))
  return {
    async printed(line) {
      while (!lines.includes(line)) await once(output, 'line')
    },
    kill: (signal) => void child.kill(signal),
    deafen: (stream) => void child[stream].destroy(),
    ended: once(child, 'close').then(([code, signal]) => ({
      code: code as number | null,
      signal: signal as NodeJS.Signals | null,
      stdout: lines.join('\n'),
      stderr,
    })),
  }
}
