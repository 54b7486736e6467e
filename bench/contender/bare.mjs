/** The app with no tracing at all. */
export function start() {
  return { flush: async () => {} }
}
