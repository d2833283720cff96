/** Last promise of a queue, by what is guarded. */
const turns = new WeakMap<object, Promise<unknown>>();

/** One after the other: leases are reconciled side by side, and must not all take the same last room under a limit. */
export function inTurn<T>(guarded: object, work: () => Promise<T>): Promise<T> {
  const turn = (turns.get(guarded) ?? Promise.resolve()).then(work, work);
  turns.set(
    guarded,
    turn.catch(() => undefined),
  );
  return turn;
}
