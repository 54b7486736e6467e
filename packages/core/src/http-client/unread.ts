import { setTimeout } from 'node:timers'

/** How long a body may be silent. One that nobody reads never ends, so its span ends with what came last. */
const UNREAD_MS = 30_000
/** How often that is checked. */
const LOOK_EVERY_MS = 5_000

/** An answered request whose body has not ended, in the list of those. */
export interface Answered {
  /** When its headers or the last piece of its body came, in milliseconds of the monotonic clock. */
  heardAt: number
  /** Whether the pieces of its body are watched. */
  isWatched: boolean
  previous: Answered | undefined
  next: Answered | undefined
  /** Tells the time, as `heardAt` has it. */
  now(): number
  /** Called for a long-running one: it must update `heardAt` from now on. */
  watchBody(): void
  /** Called when nothing more is expected. */
  abandoned(): void
}

/**
 * Answered requests whose body has not come to its end. They share one timer, which is made at set-up and started again: a
 * timer for each request costs 1 µs, and would keep the context of a request. Most are read before the first check; only the
 * rest have their bodies watched.
 */
export class Unread {
  /** The one answered last. Most end before the next is answered and never enter the list: saves 0.3 µs. */
  #latest: Answered | undefined
  #oldest: Answered | undefined
  #newest: Answered | undefined
  #isLooking = true
  readonly #timer = setTimeout(() => this.#look(), LOOK_EVERY_MS).unref()

  add(answered: Answered): void {
    answered.heardAt = answered.now()
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

  /** Does nothing for one that was not added. */
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
    for (let answered = this.#oldest; answered !== undefined;) {
      const { next } = answered
      if (answered.heardAt <= answered.now() - UNREAD_MS) {
        this.remove(answered)
        answered.abandoned()
      } else if (!answered.isWatched) {
        answered.isWatched = true
        answered.watchBody()
      }
      answered = next
    }
    // `abandoned` may have led to another request.
    this.#isLooking = this.#latest !== undefined || this.#oldest !== undefined
    if (this.#isLooking) this.#timer.refresh()
  }
}
