// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ILeaseEscrow} from "../src/ILeaseEscrow.sol";
import {Base, permitOf, vm, yes} from "./Base.sol";

/// @dev What transactions cost, calldata and base fee included: forge runs these in isolation, each call a transaction. The
/// figures are compared with gas.json by `npm run test:contracts`.
/// forge-config: default.isolate = true
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

    /// @dev Who provides is paid itself, as is the default.
    function ownQuote() private returns (ILeaseEscrow.Quote memory q) {
        q = newQuote();
        q.payee = provider;
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

    function test_gas_ofALease() public {
        lease(ownQuote(), "open, first lease", "close, first lease");
        (uint256 o, uint256 c) = lease(ownQuote(), "open, second lease", "close, second lease");
        emit log_named_uint("open + close, second lease", o + c);
        yes("second lease <= 340,000", o + c <= 340_000);

        vm.prank(provider);
        escrow.withdraw(address(usdc), provider);
        used("withdraw, first");
        vm.prank(consumer);
        escrow.withdraw(address(usdc), consumer);
        used("withdraw, first of another");
        // The account is used, so what it earns next costs what it did.
        (o, c) = lease(ownQuote(), "open, after a withdrawal", "close, after a withdrawal");
        yes("a lease after a withdrawal <= 340,000", o + c <= 340_000);
    }

    /// @dev All that a payee and a referrer of their own can add.
    function test_gas_ofALease_withReferrer() public {
        ILeaseEscrow.Quote memory q = newQuote();
        (q.referrer, q.referrerBps) = (referrer, 2500);
        lease(q, "open, with payee and referrer, first", "close, with payee and referrer, first");
        q = newQuote();
        (q.referrer, q.referrerBps) = (referrer, 2500);
        (uint256 o, uint256 c) = lease(q, "open, with payee and referrer", "close, with payee and referrer");
        emit log_named_uint("open + close, with payee and referrer", o + c);
        yes("with referrer <= 370,000", o + c <= 370_000);
    }

    function test_gas_ofOtherWaysToPay() public {
        lease(ownQuote(), "open, first lease", "close, first lease");
        vm.prank(consumer);
        usdc.approve(address(escrow), 0);
        ILeaseEscrow.Quote memory q = ownQuote();
        bytes memory signature = signedQuote(q);
        ILeaseEscrow.Permit memory p = permitOf(CONSUMER_KEY, usdc, address(escrow), 680_000);
        vm.prank(consumer);
        escrow.openWithPermit(q, signature, session, 680_000, p);
        used("openWithPermit, first permit");

        q = ownQuote();
        signature = signedQuote(q);
        ILeaseEscrow.Authorization memory a = authorization(q, session, 340_000);
        vm.prank(stranger);
        bytes32 id = escrow.openWithAuthorization(q, signature, session, 340_000, a);
        used("openWithAuthorization");

        vm.prank(consumer);
        usdc.approve(address(escrow), type(uint256).max);
        used("approve");
        vm.prank(consumer);
        escrow.topUp(id, 1000);
        used("topUp");
        fund(usdc, stranger, 1e9);
        vm.prank(stranger);
        escrow.topUp(id, 1000);
        used("topUp, first of a sponsor");
        vm.prank(stranger);
        escrow.topUp(id, 1000);
        used("topUp, second of a sponsor");
        pass(3600);
        ILeaseEscrow.Release memory r;
        (r, signature) = release(id, 3000);
        vm.prank(consumer);
        escrow.closeWithRelease(r, signature);
        used("closeWithRelease, sponsored");
        uint256 has = escrow.sponsorship(id, 0).refundable;
        yes("nothing is left for the sponsor", has == 0);
    }

    function test_gas_ofSettlements() public {
        many(10, "settleMany of 10, first", "settleMany of 10, repeated");
        bytes32 id = openFull();
        pass(600);
        settle(id, 500);
        used("settle, first");
        settle(id, 500);
        used("settle, nothing new");
        pass(600);
        settle(id, 1500);
        used("settle, repeated");
        vm.prank(consumer);
        escrow.requestClose(id);
        used("requestClose");
        pass(4000 + WINDOW);
        escrow.finalize(id);
        used("finalize");
        id = openFull();
        vm.prank(provider);
        escrow.providerClose(id, ILeaseEscrow.CloseReason.ProviderMaintenance);
        used("providerClose");
    }

    function test_gas_ofAHundredSettlements() public {
        many(100, "settleMany of 100, first", "settleMany of 100, repeated");
    }

    function test_gas_ofASponsorsRefund() public {
        lease(ownQuote(), "open, first lease", "close, first lease");
        bytes32 id = open(ownQuote(), 340_000);
        fund(usdc, stranger, 1e9);
        vm.prank(stranger);
        escrow.topUp(id, 1000);
        close(id, 0);
        escrow.refundSponsor(id, 0);
        used("refundSponsor");
    }

    function many(uint32 count, string memory first, string memory repeated) private {
        ILeaseEscrow.SignedVoucher[] memory items = new ILeaseEscrow.SignedVoucher[](count);
        bytes32[] memory ids = new bytes32[](count);
        for (uint256 i = 0; i < count; ++i) {
            ids[i] = openFull();
        }
        for (uint32 round = 1; round <= 2; ++round) {
            pass(600);
            for (uint256 i = 0; i < count; ++i) {
                (items[i].voucher, items[i].signature) = voucher(ids[i], round * 500, false);
            }
            escrow.settleMany(items);
            uint256 gas = used(round == 1 ? first : repeated) / count;
            if (round == 2) yes("repeated <= 35,000 each", gas <= 35_000);
        }
    }
}

interface IGas {
    function lastCallGas() external view returns (GasTest.CallGas memory);
}
