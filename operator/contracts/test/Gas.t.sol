// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ILeaseEscrow} from "../src/ILeaseEscrow.sol";
import {Base, vm, yes} from "./Base.sol";

/// @dev What transactions cost, calldata and base fee included: forge runs these in isolation, each call a transaction.
contract GasTest is Base {
    /// @dev The name that forge decodes into its report.
    event log_named_uint(string key, uint256 val);

    struct CallGas {
        uint64 gasLimit;
        uint64 gasTotalUsed;
        uint64 gasMemoryUsed;
        int64 gasRefunded;
        uint64 gasRemaining;
    }

    function used(string memory call) private returns (uint256 gas) {
        gas = IGas(address(vm)).lastCallGas().gasTotalUsed;
        emit log_named_uint(call, gas);
    }

    function test_gas_ofALease() public {
        ILeaseEscrow.Quote memory q = newQuote();
        q.payee = provider;
        (uint256 opened,) = lease(q, "open, first lease", "close, first lease");
        yes("first open", opened < 300_000);

        q = newQuote();
        q.payee = provider;
        (uint256 o, uint256 c) = lease(q, "open, second lease", "close, second lease");
        emit log_named_uint("open + close, second lease", o + c);
        yes("second lease <= 340,000", o + c <= 340_000);

        vm.prank(provider);
        escrow.withdraw(address(usdc), provider);
        used("withdraw, first");
        vm.prank(consumer);
        escrow.withdraw(address(usdc), consumer);
        used("withdraw, first of another");

        // All that a payee and a referrer of their own can add.
        q = newQuote();
        (q.referrer, q.referrerBps) = (referrer, 2500);
        (o, c) = lease(q, "open, with payee and referrer", "close, with payee and referrer, first");
        q = newQuote();
        (q.referrer, q.referrerBps) = (referrer, 2500);
        (o, c) = lease(q, "open, with payee and referrer", "close, with payee and referrer");
        emit log_named_uint("open + close, with payee and referrer", o + c);
        yes("with referrer <= 370,000", o + c <= 370_000);

        vm.prank(provider);
        (bool ok,) = address(escrow).call(abi.encodeCall(ILeaseEscrow.withdraw, (address(usdc), provider)));
        yes("nothing to withdraw", !ok);

        vm.prank(consumer);
        usdc.approve(stranger, type(uint256).max);
        used("approve");
    }

    function lease(ILeaseEscrow.Quote memory q, string memory openName, string memory closeName)
        private
        returns (uint256 opened, uint256 closed)
    {
        bytes memory signature = signedQuote(q);
        vm.prank(consumer);
        bytes32 id = escrow.open(q, signature, session, 680_000);
        opened = used(openName);
        pass(3600);
        ILeaseEscrow.Voucher memory v;
        (v, signature) = voucher(id, 3000, true);
        vm.prank(provider);
        escrow.close(v, signature);
        closed = used(closeName);
    }

    function test_gas_ofManySettlements() public {
        ILeaseEscrow.SignedVoucher[] memory items = new ILeaseEscrow.SignedVoucher[](10);
        bytes32[] memory ids = new bytes32[](10);
        for (uint256 i = 0; i < 10; ++i) {
            ids[i] = openFull();
        }
        for (uint32 round = 1; round <= 2; ++round) {
            pass(600);
            for (uint256 i = 0; i < 10; ++i) {
                (items[i].voucher, items[i].signature) = voucher(ids[i], round * 500, false);
            }
            escrow.settleMany(items);
            uint256 gas = used(round == 1 ? "settleMany of 10, first" : "settleMany of 10, repeated") / 10;
            if (round == 2) yes("repeated <= 35,000 each", gas <= 35_000);
        }
        settle(ids[0], 1000);
        used("settle, nothing new");
        pass(600);
        settle(ids[0], 1500);
        used("settle, repeated");
        vm.prank(consumer);
        escrow.requestClose(ids[0]);
        used("requestClose");
        pass(4000 + WINDOW);
        escrow.finalize(ids[0]);
        used("finalize");
    }
}

interface IGas {
    function lastCallGas() external view returns (GasTest.CallGas memory);
}
