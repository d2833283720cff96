import { expect, test } from 'vitest';
import { idOf } from '../../../operator/contracts/slither.ts';

const found = (lines: string, expression = 'block.timestamp < from') =>
  `LeaseEscrow.finalize(bytes32) (src/LeaseEscrow.sol#${lines}) uses timestamp for comparisons\n\t- ${expression} (src/LeaseEscrow.sol#397)\n`;

test('a finding is the same one wherever it moves, and another one when it says something else', () => {
  expect(idOf('timestamp', found('392-399'))).toBe(idOf('timestamp', found('402-409')));
  expect(idOf('timestamp', found('392-399'))).not.toBe(idOf('timestamp', found('392-399', 'block.timestamp > from')));
  expect(idOf('timestamp', found('7'))).not.toBe(idOf('reentrancy-benign', found('7')));
});
