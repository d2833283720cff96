// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ILeaseEscrow} from "../src/ILeaseEscrow.sol";
import {same, yes} from "./Base.sol";
import {Handler} from "./Handler.sol";

/// @dev What must hold after whatever was done, I1 to I14 of the design; each is fuzzed by itself. I14, that the model is the
/// contract, is Traces.t.sol. I7 and I10 are about bonds and rewards, which there are not yet.
contract InvariantsTest {
    Handler handler;

    function setUp() public {
        handler = new Handler();
    }

    struct FuzzSelector {
        address addr;
        bytes4[] selectors;
    }

    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(handler);
    }

    /// @dev Actions alone; what only looks is no move of the game. Settling is more frequent than the rest.
    function targetSelectors() public view returns (FuzzSelector[] memory targets) {
        bytes4[] memory s = new bytes4[](19);
        s[0] = Handler.openSome.selector;
        s[1] = Handler.topUpSome.selector;
        s[2] = Handler.settleSome.selector;
        s[3] = Handler.settleThree.selector;
        s[4] = Handler.closeSome.selector;
        s[5] = Handler.releaseSome.selector;
        s[6] = Handler.requestSome.selector;
        s[7] = Handler.giveUpSome.selector;
        s[8] = Handler.finalizeSome.selector;
        s[9] = Handler.refundSome.selector;
        s[10] = Handler.withdrawSome.selector;
        s[11] = Handler.forgeVoucher.selector;
        s[12] = Handler.forgeRelease.selector;
        s[13] = Handler.forgeOpening.selector;
        s[14] = Handler.govern.selector;
        s[15] = Handler.listSome.selector;
        s[16] = Handler.donate.selector;
        s[17] = Handler.wait.selector;
        s[18] = Handler.waitLong.selector;
        targets = new FuzzSelector[](1);
        targets[0] = FuzzSelector(address(handler), s);
    }

    /// @dev At the end of each run everybody leaves.
    function afterInvariant() public {
        handler.everybodyLeaves();
        for (uint256 i = 1; i < 14; ++i) {
            unbroken(i);
        }
    }

    function unbroken(uint256 invariant) private view {
        string memory what = handler.broken(invariant);
        yes(what, bytes(what).length == 0);
    }

    function invariant_I01_balanceIsWhatIsHeldAndOwed() public view {
        unbroken(1);
        for (uint256 t = 0; t < 2; ++t) {
            address token = handler.tokens(t);
            ILeaseEscrow.Totals memory books = handler.totalsOf(token);
            (uint256 deposits, uint256 inside) = handler.moneyOf(token);
            same("deposited", books.deposited, deposits);
            same("held", books.held, inside);
            same(
                "deposited = paid + fee + refunded + held",
                deposits,
                books.paid + books.fee + books.refunded + books.held
            );
            same("balance", handler.balanceOf(token), inside + handler.creditsOf(token) + handler.donated(token));
        }
    }

    function invariant_I02_closedOnce_depositIsShared() public view {
        unbroken(2);
        for (uint256 i = 0; i < handler.count(); ++i) {
            (ILeaseEscrow.Lease memory l, Handler.Known memory k) = handler.leaseOf(i);
            uint256 all = handler.depositsOf(i);
            same("deposit", l.deposit, all);
            if (l.closeReason == ILeaseEscrow.CloseReason.Open) same("nothing refunded before the end", l.refunded, 0);
            else same("paid + fee + refunded = deposit", uint256(l.claimed) + l.refunded, all);
            if (k.ended != 0) yes("over is over", keccak256(abi.encode(l)) == k.ended);
        }
    }

    function invariant_I03_claimedWithinTimeTermAndDeposit() public view {
        for (uint256 i = 0; i < handler.count(); ++i) {
            (ILeaseEscrow.Lease memory l,) = handler.leaseOf(i);
            uint256 until = block.timestamp < l.endsAt ? block.timestamp : l.endsAt;
            if (l.closingAt != 0 && l.closingAt < until) until = l.closingAt;
            yes("seconds <= elapsed", l.servedSeconds <= until - l.openedAt);
            yes("seconds <= term", l.servedSeconds <= l.maxSeconds);
            yes("claimed <= price", l.claimed <= uint256(l.servedSeconds) * l.pricePerGpuHour * l.gpus / 3600);
            yes("claimed <= deposit", l.claimed <= l.deposit);
        }
    }

    function invariant_I04_theMostThatWasShown_whateverTheOrder() public view {
        unbroken(4);
        for (uint256 i = 0; i < handler.count(); ++i) {
            (ILeaseEscrow.Lease memory l, Handler.Known memory k) = handler.leaseOf(i);
            same("seconds", l.servedSeconds, k.counted);
            uint256 price = k.counted * l.pricePerGpuHour * l.gpus / 3600;
            same("claimed", l.claimed, price < l.deposit ? price : l.deposit);
            same("fee", l.feeTaken, uint256(l.claimed) * l.feeBps / 10_000);
        }
    }

    function invariant_I05_noPauseShutsAWayOut() public view {
        unbroken(5);
    }

    function invariant_I06_anyoneEndsIt_nobodyPutsItOff() public view {
        unbroken(6);
    }

    function invariant_I08_noOtherSignatureMovesValue() public view {
        unbroken(8);
    }

    function invariant_I09_countedSecondsArePaidOnceCovered() public view {
        for (uint256 i = 0; i < handler.count(); ++i) {
            (ILeaseEscrow.Lease memory l, Handler.Known memory k) = handler.leaseOf(i);
            uint256 price = k.counted * l.pricePerGpuHour * l.gpus / 3600;
            yes("covered, counted and unpaid", l.claimed == price || l.claimed == l.deposit);
        }
    }

    function invariant_I11_feeOfTheOpening_atMostFivePercent() public view {
        for (uint256 i = 0; i < handler.count(); ++i) {
            (ILeaseEscrow.Lease memory l, Handler.Known memory k) = handler.leaseOf(i);
            same("fee of the opening", l.feeBps, k.feeBps);
            yes("fee <= 5 %", uint256(l.feeTaken) * 20 <= l.claimed);
            if (l.token == handler.tokens(1)) same("none in the network's token", l.feeTaken, 0);
        }
    }

    function invariant_I12_refusedReceiversHarmOnlyThemselves() public view {
        unbroken(12);
    }

    function invariant_I13_depositorsGetWhatIsLeftOfTheirs() public view {
        unbroken(13);
        for (uint256 i = 0; i < handler.count(); ++i) {
            (uint256 owed, uint256 told) = handler.owedOf(i);
            same("owed to sponsors", told, owed);
        }
    }

    /// @dev Fuzzing that does nothing finds nothing: the same moves, by fixed dice, do reach everything.
    function test_handler_reachesEverything() public {
        uint256 dice = 1;
        for (uint256 i = 0; i < 4000; ++i) {
            dice = uint256(keccak256(abi.encode(dice)));
            if (i % 400 == 0) {
                handler.everybodyLeaves();
                handler = new Handler();
            }
            move(dice);
            if (i % 400 != 399) continue;
            for (uint256 w = 0; w < 16; ++w) {
                string memory what = whats(w);
                reached[w] += handler.done(what);
            }
        }
        for (uint256 w = 0; w < 16; ++w) {
            yes(whats(w), reached[w] >= 5);
        }
        for (uint256 i = 1; i < 14; ++i) {
            unbroken(i);
        }
    }

    mapping(uint256 => uint256) reached;

    function whats(uint256 i) private pure returns (string memory) {
        return [
            "open",
            "openWithPermit",
            "openWithAuthorization",
            "topUp",
            "topUp of a sponsor",
            "settle",
            "settleMany",
            "close",
            "closeWithRelease",
            "requestClose",
            "providerClose",
            "finalize",
            "refundSponsor",
            "withdraw",
            "withdraw, refused by the token",
            "forged voucher"
        ][i];
    }

    function move(uint256 dice) private {
        uint256 which = dice >> 200;
        uint32 some = uint32(dice >> 160);
        uint256 kind = dice % 22;
        if (kind < 2) handler.openSome(uint96(dice >> 64), uint32(dice >> 32), some, uint32(dice >> 96), which);
        else if (kind < 5) handler.topUpSome(which, uint96(dice >> 64), uint8(some));
        else if (kind < 8) handler.settleSome(which, some % 2000, dice & 256 == 0);
        else if (kind == 8) handler.settleThree(which, some % 2000);
        else if (kind == 9 && dice & 1024 == 0) handler.closeSome(which, some % 2000);
        else if (kind == 10 && dice & 1024 == 0) handler.releaseSome(which, some % 2000);
        else if (kind < 11) handler.finalizeSome(which, uint8(some));
        else if (kind == 11) handler.requestSome(which);
        else if (kind == 12) handler.giveUpSome(which, uint8(some));
        else if (kind == 13) handler.finalizeSome(which, uint8(some));
        else if (kind == 14) handler.refundSome(which, some % 3, 0);
        else if (kind == 15) handler.withdrawSome(which, some % 3 == 0);
        else if (kind == 16) handler.forgeVoucher(which, some, dice >> 32, dice >> 64);
        else if (kind == 17) handler.forgeRelease(which, some, dice >> 32, dice >> 64);
        else if (kind == 18) handler.forgeOpening(uint96(dice >> 64), dice >> 32, dice >> 96);
        else if (kind == 19) handler.govern(dice & 256 == 0, dice & 512 == 0, uint16(some));
        else if (kind == 20) handler.listSome(which, some % 3 == 0);
        else if (some % 2 == 0) handler.wait(some / 2);
        else handler.waitLong(uint8(some >> 8));
    }
}
