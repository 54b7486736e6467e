import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { beforeAll, describe, expect, test } from 'vitest'
import { root } from './source.ts'

const pages = [
  'README.md',
  'CONTRIBUTING.md',
  'bench/README.md',
  'test/conformance/README.md',
  ...['packages', 'examples'].flatMap((folder) =>
    readdirSync(join(root, folder)).map((name) => `${folder}/${name}/README.md`),
  ),
].filter((page) => existsSync(join(root, page)))

const textOf = (page: string) => readFileSync(join(root, page), 'utf8')

/** In node_modules, so that what the blocks import is found, and git and the other tools do not see it. */
const folder = join(root, 'node_modules/.cache/readme')

/** The blocks of a language, each at the line where it stands on its page, so that messages of the compiler tell it. */
function blocksOf(page: string, language: 'ts' | 'js'): string[] {
  const text = textOf(page)
  return Array.from(
    text.matchAll(new RegExp(`^\`\`\`${language}\\b.*\\n([\\s\\S]*?)^\`\`\`$`, 'gm')),
    (block) => {
      const before = text.slice(0, block.index).split('\n').length
      return '\n'.repeat(before) + (block[1] as string)
    },
  )
}

/** The compiler's messages, by the page that they are about. */
const messages = new Map<string, string[]>()

beforeAll(() => {
  rmSync(folder, { recursive: true, force: true })
  write('ts/package.json', { type: 'module' })
  write('ts/tsconfig.json', settings)
  // A block of CommonJS goes on with the app of the block before it.
  write('js/app.d.ts', 'declare const app: any\n')
  write('js/tsconfig.json', { ...settings, compilerOptions: { ...settings.compilerOptions, checkJs: true } })
  for (const page of pages) {
    const name = page.replaceAll('/', '--')
    for (const [index, block] of blocksOf(page, 'ts').entries()) write(`ts/${name}.${index}.ts`, block)
    for (const [index, block] of blocksOf(page, 'js').entries()) write(`js/${name}.${index}.cjs`, block)
  }
  for (const project of ['ts', 'js']) {
    const tsc = [join(root, 'node_modules/typescript/bin/tsc'), '--pretty', 'false', '-p', project]
    const { stdout, stderr } = spawnSync(process.execPath, tsc, { cwd: folder, encoding: 'utf8' })
    for (const line of `${stdout}${stderr}`.split('\n')) {
      const [, page, rest] = /^(?:.*\/)?([\w-]+\.md)\.\d+\.\w+(\(.*)$/.exec(line) ?? [undefined, '', line]
      const name = (page as string).replaceAll('--', '/')
      if (rest !== '') messages.set(name, [...(messages.get(name) ?? []), rest as string])
    }
  }
})

const settings = {
  extends: join(root, 'tsconfig.base.json'),
  compilerOptions: {
    noEmit: true,
    composite: false,
    declaration: false,
    declarationMap: false,
    // A page shows what it is about, not what comes of it.
    noUnusedLocals: false,
    customConditions: ['@throughline/source'],
    allowImportingTsExtensions: true,
    moduleDetection: 'force',
    typeRoots: [join(root, 'node_modules/@types')],
  },
  include: ['.'],
  // The folder is in node_modules, which is left out if nothing is said.
  exclude: [],
}

function write(path: string, content: string | object): void {
  mkdirSync(dirname(join(folder, path)), { recursive: true })
  writeFileSync(join(folder, path), typeof content === 'string' ? content : JSON.stringify(content))
}

test('the compiler has read the pages, and complains of nothing else', () => {
  expect(blocksOf('README.md', 'ts').length).toBeGreaterThan(1)
  expect(
    [...messages.keys()].filter((page) => !pages.includes(page)).map((page) => messages.get(page)),
  ).toEqual([])
})

describe.each(pages)('%s', (page) => {
  test('shows code that compiles', () => {
    expect(messages.get(page) ?? []).toEqual([])
  })

  test('links to what is there', () => {
    // Not in blocks of code, and not to other hosts.
    const prose = textOf(page).replaceAll(/^```[\s\S]*?^```$/gm, '')
    const links = Array.from(prose.matchAll(/\]\(([^)\s]+)\)/g), ([, link]) => link as string)
    const broken = links
      .filter((link) => !/^[a-z]+:/.test(link))
      .filter((link) => {
        const [path = '', anchor] = link.split('#')
        const target = path === '' ? page : join(dirname(page), path)
        if (!existsSync(join(root, target))) return true
        return anchor !== undefined && !anchorsOf(target).includes(anchor)
      })
    expect(broken).toEqual([])
  })

  test('names commands that there are', () => {
    const { scripts, devDependencies } = JSON.parse(textOf('package.json')) as Record<
      string,
      Record<string, string>
    >
    const text = textOf(page)
    const named = Array.from(text.matchAll(/\bnpm run (?:-s )?([\w:]+)/g), ([, name]) => name as string)
    if (/\bnpm test\b/.test(text)) named.push('test')
    expect(named.filter((name) => scripts?.[name] === undefined)).toEqual([])
    if (/\bnpm ci\b/.test(text)) expect(existsSync(join(root, 'package-lock.json'))).toBe(true)

    const files = Array.from(text.matchAll(/\bnode (\w\S*\.m?js)\b/g), ([, name]) => name as string)
    const isThere = (name: string) =>
      [root, join(root, dirname(page))].some((at) => existsSync(join(at, name)))
    expect(files.filter((name) => !isThere(name))).toEqual([])

    const published = Array.from(text.matchAll(/(?:npx|npm install|\bi) ((?:@?[\w./-]+ ?)+)/g), ([, names]) =>
      (names as string).trim().split(' '),
    ).flat()
    const strangers = published.filter(
      (name) =>
        name.startsWith('@throughline/') && !existsSync(join(root, name.replace('@throughline', 'packages'))),
    )
    expect(strangers).toEqual([])
    if (/\bnpx changeset\b/.test(text)) expect(devDependencies).toHaveProperty('@changesets/cli')
  })
})

/** The headings of a page as GitHub makes anchors of them. */
function anchorsOf(page: string): string[] {
  return Array.from(textOf(page).matchAll(/^#+ (.*)$/gm), ([, heading]) =>
    (heading as string)
      .toLowerCase()
      .replaceAll(/[^\p{L}\p{N}\s_-]/gu, '')
      .replaceAll(' ', '-'),
  )
}
