import { expect, test } from 'vitest';
import { readLcov } from '../../../operator/contracts/coverage.ts';

test('reads shares of each contract, and the lines whose branches no test takes', () => {
  const report = `TN:
SF:src/A.sol
DA:5,1
FNF:2
FNH:1
LF:10
LH:9
BRDA:5,0,0,3
BRDA:5,0,1,-
BRDA:9,1,0,0
BRF:3
BRH:1
end_of_record
TN:
SF:src/B.sol
FNF:1
FNH:1
LF:1
LH:1
BRF:0
BRH:0
end_of_record
`;
  expect(readLcov(report)).toEqual([
    {
      contract: 'src/A.sol',
      lines: { hit: 9, found: 10 },
      functions: { hit: 1, found: 2 },
      branches: { hit: 1, found: 3 },
      missed: [5, 9],
    },
    {
      contract: 'src/B.sol',
      lines: { hit: 1, found: 1 },
      functions: { hit: 1, found: 1 },
      branches: { hit: 0, found: 0 },
      missed: [],
    },
  ]);
});
