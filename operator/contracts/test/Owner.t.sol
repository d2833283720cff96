// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {TimelockController} from "@openzeppelin/contracts/governance/TimelockController.sol";

import {ILeaseEscrow} from "../src/ILeaseEscrow.sol";
import {Base, Escrow, vm, yes} from "./Base.sol";

/// @dev trees/ownership.tree: the steps of `deploy-contracts --timelock-seconds`, and what they are good for.
contract OwnerTest is Base {
    uint256 constant DELAY = 48 hours;

    function test_owner_mayBeATimelock() public {
        address governor = address(0x6);
        address[] memory deployer = new address[](1);
        deployer[0] = owner;
        TimelockController timelock = new TimelockController(0, deployer, new address[](1), address(0));
        vm.prank(owner);
        escrow.transferOwnership(address(timelock));

        address[] memory targets = new address[](6);
        bytes[] memory calls = new bytes[](6);
        for (uint256 i = 1; i < 6; ++i) {
            targets[i] = address(timelock);
        }
        targets[0] = address(escrow);
        calls[0] = abi.encodeCall(Escrow.acceptOwnership, ());
        calls[1] = abi.encodeWithSignature("grantRole(bytes32,address)", timelock.PROPOSER_ROLE(), governor);
        calls[2] = abi.encodeWithSignature("grantRole(bytes32,address)", timelock.CANCELLER_ROLE(), governor);
        calls[3] = abi.encodeWithSignature("revokeRole(bytes32,address)", timelock.PROPOSER_ROLE(), owner);
        calls[4] = abi.encodeWithSignature("revokeRole(bytes32,address)", timelock.CANCELLER_ROLE(), owner);
        calls[5] = abi.encodeCall(TimelockController.updateDelay, (DELAY));
        vm.prank(owner);
        timelock.scheduleBatch(targets, new uint256[](6), calls, 0, 0, 0);
        timelock.executeBatch(targets, new uint256[](6), calls, 0, 0);
        yes("its owner", escrow.owner() == address(timelock) && timelock.getMinDelay() == DELAY);

        bytes memory rule = abi.encodeCall(ILeaseEscrow.setToken, (address(usdc), true, 500));
        vm.prank(owner);
        expect(abi.encodeWithSignature("OwnableUnauthorizedAccount(address)", owner));
        escrow.setToken(address(usdc), true, 500);
        bytes32 role = timelock.PROPOSER_ROLE();
        vm.prank(owner);
        expect(abi.encodeWithSignature("AccessControlUnauthorizedAccount(address,bytes32)", owner, role));
        timelock.schedule(address(escrow), 0, rule, 0, 0, DELAY);
        vm.prank(governor);
        expect(abi.encodeWithSignature("TimelockInsufficientDelay(uint256,uint256)", DELAY - 1, DELAY));
        timelock.schedule(address(escrow), 0, rule, 0, 0, DELAY - 1);
        vm.prank(governor);
        timelock.schedule(address(escrow), 0, rule, 0, 0, DELAY);
        pass(DELAY - 1);
        (bool early,) =
            address(timelock).call(abi.encodeCall(TimelockController.execute, (address(escrow), 0, rule, 0, 0)));
        yes("not yet", !early && escrow.tokenRule(address(usdc)).feeBps == 200);
        pass(1);
        timelock.execute(address(escrow), 0, rule, 0, 0);
        yes("now", escrow.tokenRule(address(usdc)).feeBps == 500);
    }
}
