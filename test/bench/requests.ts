/** How many requests our two programs made of the two API servers, from their own metrics. */
import type { Sandbox } from '../../operator/sandbox/sandbox.ts';

/** By program and method, e.g. `operator PATCH`. */
export type Requests = Readonly<Record<string, number>>;

export async function requestsOf(sandbox: Sandbox, signal: AbortSignal): Promise<Requests> {
  const found: Record<string, number> = {};
  for (const program of ['operator', 'gateway'] as const) {
    const answer = await fetch(`http://127.0.0.1:${sandbox.operations[program]}/metrics`, { signal });
    for (const [, method, count] of (await answer.text()).matchAll(
      /^rest_client_requests_total\{[^}]*method="(\w+)"[^}]*\} (\d+)$/gm,
    ))
      found[`${program} ${method}`] = (found[`${program} ${method}`] ?? 0) + Number(count);
  }
  return found;
}

/** What was asked between two readings, for each of `count`. */
export function requestsPer(count: number, before: Requests, after: Requests): Requests {
  return Object.fromEntries(
    Object.entries(after)
      .map(([name, value]) => [name, Math.round(((value - (before[name] ?? 0)) / count) * 100) / 100] as const)
      .filter(([, value]) => value >= 0.05)
      .toSorted(([a], [b]) => (a < b ? -1 : 1)),
  );
}
