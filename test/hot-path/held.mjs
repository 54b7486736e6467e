/** An object whose function V8 makes in its old space: since it is written where it is assigned to a property. */
export function held(resolve) {
  const made = { resolve }
  made.answer = () => resolve(made)
  return made
}
