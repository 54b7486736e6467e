import { readFileSync } from 'node:fs'
import { isRatio, show, showNoUrl } from './options.ts'
import { reportOnce } from './report.ts'

export type Environment = Record<string, string | undefined>

export type Pem = string | Buffer

/** Certificates are also parsed in their binary form, with which no connection can be made. */
const PEM_BEGIN = '-----BEGIN '

/** What a message may show as the name of a file. A key that stands in its place, in whichever form, is none of these. */
const PATH = /^(?:[./~]|[a-z]:[\\/]|\w[^\r\n]*\.)[^\r\n]*$/i

/** The longest time that a timer of Node can wait; a longer one would fire at once. */
export const MOST_TIMER_MS = 2 ** 31 - 1

export type Reader = ReturnType<typeof reader>

/** Whether this is PEM of what `parse` takes, which throws for what it does not. */
export function isPem(pem: Pem, parse: (pem: Pem) => unknown): boolean {
  try {
    parse(pem)
    return pem.includes(PEM_BEGIN)
  } catch {
    return false
  }
}

/**
 * Reads variables as the OpenTelemetry specification says: empty is unset, a bad value is warned about once and taken as
 * unset, names of choices are read in any case.
 */
export function reader(environment: Environment) {
  function text(name: string): string | undefined {
    const value = environment[name]?.trim()
    return value === '' ? undefined : value
  }

  function checked<T>(
    name: string,
    wanted: string,
    read: (value: string) => T | undefined,
    shows: (value: string) => string = show,
  ): T | undefined {
    const value = text(name)
    if (value === undefined) return undefined
    const result = read(value)
    if (result === undefined) {
      reportOnce(`env:${name}`, 'warn', `${name} is ignored: expected ${wanted}, received ${shows(value)}`)
    }
    return result
  }

  function count(name: string, least = 0): number | undefined {
    return checked(name, `a whole number of at least ${least}`, (value) => {
      const number = decimal(value)
      return isWholeNumber(number, least) ? number : undefined
    })
  }

  function sayUnsupported(name: string, value: string, hint = 'it is ignored'): void {
    reportOnce(`env:${name}:${value}`, 'warn', `${name}: ${value} is not supported; ${hint}`)
  }

  return {
    text,
    flag(name: string): boolean {
      const read = (value: string) => {
        const lower = value.toLowerCase()
        return lower === 'true' || lower === 'false' ? lower === 'true' : undefined
      }
      return checked(name, 'true or false', read) ?? false
    },
    count,
    ratio(name: string): number | undefined {
      return checked(name, 'a number from 0 to 1', (value) =>
        isRatio(decimal(value)) ? decimal(value) : undefined,
      )
    },
    url(name: string): string | undefined {
      const read = (value: string) => (isHttpUrl(value) ? new URL(value).href : undefined)
      return checked(name, 'an http or https URL', read, showNoUrl)
    },
    /** One of these. For a known but unavailable one, the warning has a hint. */
    choice<T extends string>(
      name: string,
      choices: readonly T[],
      unsupported: readonly string[] = [],
      hint?: string,
    ): T | undefined {
      const value = text(name)?.toLowerCase()
      if (value !== undefined && unsupported.includes(value)) {
        sayUnsupported(name, value, hint)
        return undefined
      }
      return checked(name, `one of ${choices.join(', ')}`, () => choices.find((choice) => choice === value))
    },
    /** The available ones of a list, in its order, each once; every other one is warned about. */
    list(name: string, choices: readonly string[], unsupported: readonly string[]): string[] {
      const names = new Set(
        text(name)
          ?.toLowerCase()
          .split(/[\s,]+/),
      )
      names.delete('')
      const wanted = [...names].filter((value) => {
        if (choices.includes(value)) return true
        if (unsupported.includes(value)) sayUnsupported(name, value)
        else {
          reportOnce(
            `env:${name}:${value}`,
            'warn',
            `${name}: expected ${choices.join(', ')}, received ${show(value)}, which is ignored`,
          )
        }
        return false
      })
      if (wanted.length > 1 && wanted.includes('none')) {
        reportOnce(`env:${name}`, 'warn', `${name}: none among others is none; they are ignored`)
      }
      return wanted
    },
    /**
     * The content of the file named by the variable for traces, else by the general one. `parse` throws for invalid content.
     */
    pem(name: string, wanted: string, parse: (pem: Pem) => unknown): Buffer | undefined {
      const read = (path: string) => {
        try {
          const pem = readFileSync(path)
          return isPem(pem, parse) ? pem : undefined
        } catch {
          return undefined
        }
      }
      const shows = (value: string) => (PATH.test(value) ? show(value) : 'something else')
      const file = (variable: string) => checked(variable, `a file with ${wanted} as PEM`, read, shows)
      return file(`OTEL_EXPORTER_OTLP_TRACES_${name}`) ?? file(`OTEL_EXPORTER_OTLP_${name}`)
    },
    /** `k=v,k2=v2`, percent-encoded; one that cannot be decoded discards them all. */
    pairs(name: string): Record<string, string> | undefined {
      return checked(name, 'key=value,key2=value2', readPairs)
    },
    /** The same for header names and values. They may hold API keys, so a bad one is not shown. */
    headers(name: string): Record<string, string> | undefined {
      const read = (value: string) => {
        const pairs = readPairs(value)
        return pairs && Object.entries(pairs).every(([key, text]) => isHeader(key, text)) ? pairs : undefined
      }
      return checked(name, 'name=value,name2=value2', read, () => 'something else')
    },
  }
}

function readPairs(value: string): Record<string, string> | undefined {
  const pairs: [string, string][] = []
  for (const member of value.split(',')) {
    if (member.trim() === '') continue
    const at = member.indexOf('=')
    const key = member.slice(0, Math.max(at, 0)).trim()
    if (key === '') return undefined
    try {
      pairs.push([decodeURIComponent(key), decodeURIComponent(member.slice(at + 1).trim())])
    } catch {
      return undefined
    }
  }
  return Object.fromEntries(pairs)
}

/** NaN unless it is a number in decimal notation: `Number` accepts `0x0`, too. */
function decimal(text: string): number {
  return /^[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?$/i.test(text) ? Number(text) : Number.NaN
}

export function isWholeNumber(value: unknown, least: number): boolean {
  return Number.isSafeInteger(value) && (value as number) >= least
}

export function isHttpUrl(value: unknown): boolean {
  return typeof value === 'string' && /^https?:\/\//i.test(value) && URL.canParse(value)
}

const HEADER_NAME = /^[!#$%&'*+.^_`|~\w-]+$/
const HEADER_VALUE = /^[\t\x20-\x7e\x80-\xff]*$/

/**
 * What can be sent as a header (RFC 9110, 5). Node's own test is not used: importing `node:http` into a module calls its
 * getters, which load undici, HTTP/2 and TLS: 12 MB.
 */
export function isHeader(name: string, value: unknown): value is string {
  return typeof value === 'string' && HEADER_NAME.test(name) && HEADER_VALUE.test(value)
}
