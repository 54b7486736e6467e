/** What V8 makes a function for in its old space: since that is written where it is assigned to a property. */
export function held(resolve) {
  const weight = [
    { resolve },
    { resolve },
    { resolve },
    { resolve },
    { resolve },
    { resolve },
    { resolve },
    { resolve },
  ]
  const made = { weight }
  made.answer = () => resolve(made)
  return made
}
