/** How long a body may stay unread. One that nobody reads never ends: its span then ends at the time of the headers. */
const UNREAD_MS = 30_000
/** How often that is looked at. */
const LOOK_EVERY_MS = 5_000

/** A request that was answered, in the list of those whose body is not read to its end. */
export interface Answered {
  /** Milliseconds of the monotonic clock. */
  answeredAt: number
  previous: Answered | undefined
  next: Answered | undefined
  /** It will not be read any more. */
  abandoned(): void
}

/**
 * Answered requests whose body has not been read to its end. They share one timer, which is made at set-up and started
 * again: a timer for each request costs 1 µs, and would keep the context of a request.
 */
export class Unread {
  #oldest: Answered | undefined
  #newest: Answered | undefined
  #isLooking = true
  readonly #timer = setTimeout(() => this.#look(), LOOK_EVERY_MS).unref()

  add(answered: Answered): void {
    answered.answeredAt = performance.now()
    answered.previous = this.#newest
    if (this.#newest === undefined) this.#oldest = answered
    else this.#newest.next = answered
    this.#newest = answered
    if (this.#isLooking) return
    this.#isLooking = true
    this.#timer.refresh()
  }

  /** For one that is not in the list, does nothing. */
  remove(answered: Answered): void {
    const { previous, next } = answered
    if (previous === undefined && this.#oldest !== answered) return
    if (previous === undefined) this.#oldest = next
    else previous.next = next
    if (next === undefined) this.#newest = previous
    else next.previous = previous
    answered.previous = undefined
    answered.next = undefined
  }

  #look(): void {
    const before = performance.now() - UNREAD_MS
    while (this.#oldest !== undefined && this.#oldest.answeredAt <= before) {
      const answered = this.#oldest
      this.remove(answered)
      answered.abandoned()
    }
    this.#isLooking = this.#oldest !== undefined
    if (this.#isLooking) this.#timer.refresh()
  }
}
