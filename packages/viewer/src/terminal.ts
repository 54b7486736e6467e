/** Columns when nobody knows better. */
export const defaultWidth = 100

/**
 * How a waterfall is printed to this stream: its columns, or 100 where it has none, and colour by no-color.org first,
 * then FORCE_COLOR as Node reads it, then what the stream is.
 */
export function terminal(
  stdout: { isTTY?: boolean; columns?: number },
  env: Record<string, string | undefined>,
): { width: number; color: boolean } {
  return { width: stdout.columns || defaultWidth, color: isColorful(stdout, env) }
}

function isColorful({ isTTY }: { isTTY?: boolean }, env: Record<string, string | undefined>): boolean {
  if (env['NO_COLOR']) return false
  const forced = env['FORCE_COLOR']
  if (forced !== undefined) return forced !== '0' && forced !== 'false'
  return isTTY === true && env['TERM'] !== 'dumb'
}
