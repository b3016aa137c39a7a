/** A time by which several steps together must be done, unless they are given up before. */
export class Deadline {
  private readonly ended = new AbortController();
  private readonly passed = Promise.withResolvers<never>();
  private readonly timer: ReturnType<typeof setTimeout>;
  private readonly giveUp = () => this.end('the connection was given up');

  constructor(
    ms: number,
    public message: string,
    private readonly stop: AbortSignal,
  ) {
    this.passed.promise.catch(() => {});
    this.timer = setTimeout(() => this.end(this.message), ms);
    stop.addEventListener('abort', this.giveUp);
    if (stop.aborted) this.giveUp();
  }

  /** Is aborted when nobody waits for the steps any more. */
  get over(): AbortSignal {
    return this.ended.signal;
  }

  async before<Result>(step: Promise<Result>): Promise<Result> {
    return await Promise.race([step, this.passed.promise]);
  }

  clear(): void {
    clearTimeout(this.timer);
    this.stop.removeEventListener('abort', this.giveUp);
  }

  private end(message: string): void {
    this.ended.abort();
    this.passed.reject(new Error(message));
  }
}
