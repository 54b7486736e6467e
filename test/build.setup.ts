import { spawnSync } from 'node:child_process'

/** What tests run as processes of their own is compiled first; everything else they take from the sources. */
export default function build(): void {
  const tsc = ['node_modules/typescript/bin/tsc', '-b', 'examples/checkout', 'packages/http']
  const { status, stdout } = spawnSync(process.execPath, tsc, {
    cwd: new URL('..', import.meta.url),
    encoding: 'utf8',
  })
  if (status !== 0) throw new Error(`the packages do not compile:\n${stdout}`)
}
