import { setTimeout } from 'node:timers'

/** How long nothing may come of a body. One that nobody reads never ends: its span then ends with what came last. */
const UNREAD_MS = 30_000
/** How often that is looked at. */
const LOOK_EVERY_MS = 5_000

/** A request that was answered, in the list of those whose body has not come to its end. */
export interface Answered {
  /** When its headers or, later, something of its body came last, in milliseconds of the monotonic clock. */
  heardAt: number
  /** Whether what comes of its body is noticed. */
  isWatched: boolean
  previous: Answered | undefined
  next: Answered | undefined
  /** To be called for one that is under way for long: from now on it notes what comes of its body. */
  watchBody(): void
  /** Nothing will come any more. */
  abandoned(): void
}

/**
 * Answered requests whose body has not come to its end. They share one timer, which is made at set-up and started
 * again: a timer for each request costs 1 µs, and would keep the context of a request. Few are there still when it looks for
 * the first time: only they have their bodies watched.
 */
export class Unread {
  /** Answered last: most are over before the next one is answered, and need no place in the list, 0.3 µs. */
  #latest: Answered | undefined
  #oldest: Answered | undefined
  #newest: Answered | undefined
  #isLooking = true
  readonly #timer = setTimeout(() => this.#look(), LOOK_EVERY_MS).unref()

  add(answered: Answered): void {
    answered.heardAt = performance.now()
    answered.isWatched = false
    if (this.#latest !== undefined) this.#append(this.#latest)
    this.#latest = answered
    if (this.#isLooking) return
    this.#isLooking = true
    this.#timer.refresh()
  }

  #append(answered: Answered): void {
    answered.previous = this.#newest
    if (this.#newest === undefined) this.#oldest = answered
    else this.#newest.next = answered
    this.#newest = answered
  }

  /** For one that was not added, does nothing. */
  remove(answered: Answered): void {
    if (this.#latest === answered) {
      this.#latest = undefined
      return
    }
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
    if (this.#latest !== undefined) this.#append(this.#latest)
    this.#latest = undefined
    const before = performance.now() - UNREAD_MS
    for (let answered = this.#oldest; answered !== undefined;) {
      const { next } = answered
      if (answered.heardAt <= before) {
        this.remove(answered)
        answered.abandoned()
      } else if (!answered.isWatched) {
        answered.isWatched = true
        answered.watchBody()
      }
      answered = next
    }
    // Who was told of the end of one may have sent another.
    this.#isLooking = this.#latest !== undefined || this.#oldest !== undefined
    if (this.#isLooking) this.#timer.refresh()
  }
}
