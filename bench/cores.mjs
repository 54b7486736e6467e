import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'

let found

/**
 * Which cores the measured processes and the others run on. What is measured has the last of the allowed cores to itself;
 * with one core, or without `taskset`, nothing is pinned.
 *
 * @returns {{ pin: (core: 'measured' | 'rest') => string[], described: string }} `pin` gives the words to put in front of
 *   a command
 */
export function cores() {
  return (found ??= findCores())
}

function findCores() {
  const allowed = allowedCores()
  const nothing = (why) => ({ pin: () => [], described: `not pinned (${why})` })
  if (allowed.length < 2) return nothing('fewer than two cores can be told apart')
  if (spawnSync('taskset', ['-c', String(allowed.at(-1)), 'true']).status !== 0) return nothing('no taskset')
  const measured = String(allowed.at(-1))
  const rest = allowed.slice(0, -1).join(',')
  return {
    pin: (core) => ['taskset', '-c', core === 'measured' ? measured : rest],
    described: `servers on core ${measured}, load and collector on ${rest}`,
  }
}

/** From a line of /proc/self/status like `Cpus_allowed_list:	0-2,5`. */
function allowedCores() {
  try {
    const [, list = ''] = /^Cpus_allowed_list:\s*(\S+)/m.exec(readFileSync('/proc/self/status', 'utf8')) ?? []
    return list.split(',').flatMap((range) => {
      const [first, last = first] = range.split('-').map(Number)
      return Array.from({ length: last - first + 1 }, (_, index) => first + index)
    })
  } catch {
    return []
  }
}
