/**
 * What the loops of workers are made of: commands that wait for jobs or ask for them, scripts, questions about the server, and
 * QUIT.
 */
const OF_LOOPS = new Set(
  `BLMOVE BLMPOP BLPOP BRPOP BRPOPLPUSH BZMPOP BZPOPMAX BZPOPMIN CLIENT EVAL EVALSHA EVALSHA_RO EVAL_RO FCALL FCALL_RO
   INFO QUIT RPOPLPUSH`.split(/\s+/),
)
const READS_OF_STREAMS = new Set(['XREAD', 'XREADGROUP'])

/** Whether a worker's loop is made of such commands. */
export function isOfLoop(name: string, args: readonly unknown[]): boolean {
  if (OF_LOOPS.has(name)) return true
  return READS_OF_STREAMS.has(name) && args.some((arg) => String(arg).toUpperCase() === 'BLOCK')
}
