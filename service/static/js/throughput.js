/** The number of completed images per minute, from periodic readings of the workers' counters. */

const KEPT = 120; // readings
const WINDOW_MS = 60_000; // over which a rate is taken
const WIDTH = 600, HEIGHT = 80;

export class Throughput {
  #counters = new Map(); // worker -> its counter when it was last read
  #count = 0; // images since the first reading
  #readings = []; // {at, count}, oldest first
  #rates = [];

  /** Add a reading. A new worker's first reading is its start; a counter that fell was reset. */
  take(workers, at = performance.now()) {
    for (const { name, images_completed: counter } of workers) {
      const last = this.#counters.get(name) ?? counter;
      this.#count += counter < last ? counter : counter - last;
    }
    this.#counters = new Map(workers.map((each) => [each.name, each.images_completed]));
    this.#readings.push({ at, count: this.#count });
    while (this.#readings.length > 2 && this.#readings[1].at <= at - WINDOW_MS) this.#readings.shift();
    if (this.rate !== null) this.#rates.push(this.rate);
    this.#rates.splice(0, this.#rates.length - KEPT);
  }

  /** Images per minute; null with only one reading. */
  get rate() {
    const [first, last] = [this.#readings[0], this.#readings.at(-1)];
    if (this.#readings.length < 2 || last.at === first.at) return null;
    return ((last.count - first.count) * 60_000) / (last.at - first.at);
  }

  /** Whether the readings do not yet span the time over which a rate is taken. */
  get isYoung() {
    return this.#readings.at(-1).at - this.#readings[0].at < WINDOW_MS;
  }

  get highest() {
    return Math.max(0, ...this.#rates);
  }

  /** The rates so far as points of a line, the newest at the right. */
  get points() {
    const top = this.highest || 1;
    const step = WIDTH / (KEPT - 1);
    const first = WIDTH - step * (this.#rates.length - 1);
    return this.#rates.map((rate, at) => `${(first + at * step).toFixed(1)},${(HEIGHT - 2 - (rate / top) * (HEIGHT - 6)).toFixed(1)}`).join(" ");
  }
}
