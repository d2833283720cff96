/** Counts connections, of each lease and of all. */
export interface Budget {
  /** False when there is no room for another one. */
  take(leaseId: string): boolean;
  give(leaseId: string): void;
  readonly open: number;
}

export function createBudget(perLease: number, overall: number): Budget {
  const byLease = new Map<string, number>();
  let open = 0;
  return {
    take(leaseId) {
      const now = byLease.get(leaseId) ?? 0;
      if (now >= perLease || open >= overall) return false;
      byLease.set(leaseId, now + 1);
      open++;
      return true;
    },
    give(leaseId) {
      const now = byLease.get(leaseId) ?? 0;
      if (now > 1) byLease.set(leaseId, now - 1);
      else byLease.delete(leaseId);
      open--;
    },
    get open() {
      return open;
    },
  };
}
