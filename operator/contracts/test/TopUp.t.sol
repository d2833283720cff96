// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ILeaseEscrow} from "../src/ILeaseEscrow.sol";
import {Base, same, vm, yes} from "./Base.sol";

/// @dev trees/topUp.tree, trees/refundSponsor.tree
contract TopUpTest is Base {
    address another = address(0xA2);

    function setUp() public override {
        super.setUp();
        fund(usdc, stranger, 1e12);
        fund(usdc, another, 1e12);
    }

    function topUp(address from, bytes32 id, uint128 amount) private {
        vm.prank(from);
        escrow.topUp(id, amount);
    }

    function piece(bytes32 id, uint256 index, address sponsor, uint256 amount, uint256 refundable) private view {
        ILeaseEscrow.Sponsorship memory s = escrow.sponsorship(id, index);
        yes("sponsor", s.sponsor == sponsor);
        same("amount", s.amount, amount);
        same("refundable", s.refundable, refundable);
    }

    function test_topUp_byAnyone_upToTheMaximum() public {
        ILeaseEscrow.Quote memory q = newQuote();
        bytes32 id = open(q, 340_000);
        vm.expectEmit();
        emit ILeaseEscrow.LeaseToppedUp(id, stranger, 340_000, 680_000);
        topUp(stranger, id, 340_000);
        same("deposit", escrow.lease(id).deposit, 680_000);
        vm.prank(stranger);
        expect(abi.encodeWithSelector(ILeaseEscrow.DepositOutOfRange.selector, 680_001, 0, 680_000));
        escrow.topUp(id, 1);
        vm.prank(stranger);
        expect(abi.encodeWithSelector(ILeaseEscrow.DepositOutOfRange.selector, 680_000, 0, 680_000));
        escrow.topUp(id, 0);
        checkBooks(address(usdc));
    }

    function test_topUp_moreThanFits_reverts() public {
        ILeaseEscrow.Quote memory q = newQuote();
        (q.pricePerGpuHour, q.gpus, q.minSeconds) = (type(uint96).max, 2, 0);
        bytes32 id = open(q, 1);
        fund(usdc, consumer, 1e30);
        uint256 max = priceOf(q, 3600);
        vm.prank(consumer);
        expect(abi.encodeWithSelector(ILeaseEscrow.DepositOutOfRange.selector, uint256(type(uint96).max) + 1, 0, max));
        escrow.topUp(id, type(uint96).max);
        topUp(consumer, id, type(uint96).max - 1);
    }

    /// @dev I9: partial funding never burns a voucher.
    function test_topUp_paysSecondsThatWereCountedButNotCovered() public {
        ILeaseEscrow.Quote memory q = newQuote();
        bytes32 id = open(q, uint128(priceOf(q, 60)));
        pass(200);
        settle(id, 150);
        same("covered", escrow.lease(id).claimed, priceOf(q, 60));
        same("counted", escrow.lease(id).servedSeconds, 150);
        // Also those that are counted when nothing can be paid for them.
        settle(id, 170);
        same("counted on", escrow.lease(id).servedSeconds, 170);
        topUp(consumer, id, 100_000);
        same("paid at once", escrow.lease(id).claimed, priceOf(q, 170));
        checkBooks(address(usdc));
    }

    function test_topUp_unknownOrClosed_reverts() public {
        vm.prank(consumer);
        expect(abi.encodeWithSelector(ILeaseEscrow.LeaseNotFound.selector, bytes32(0)));
        escrow.topUp(bytes32(0), 1);
        bytes32 id = openFull();
        close(id, 0);
        vm.prank(consumer);
        expect(abi.encodeWithSelector(ILeaseEscrow.LeaseIsClosed.selector, id));
        escrow.topUp(id, 1);
    }

    function test_topUp_ofTheConsumer_makesNoSponsor() public {
        bytes32 id = open(newQuote(), 340_000);
        topUp(consumer, id, 1000);
        same("none", escrow.sponsorships(id), 0);
        pass(10);
        close(id, 0);
        same("all back", credit(consumer), 341_000);
        same("nothing held", escrow.totals(address(usdc)).held, 0);
    }

    /// @dev I13. A stranger's dust neither costs the consumer anything nor delays its refund.
    function test_topUp_dustOfAStranger_changesNothingForTheConsumer() public {
        ILeaseEscrow.Quote memory q = newQuote();
        bytes32 id = open(q, 340_000);
        for (uint256 i = 0; i < 20; ++i) {
            topUp(i % 2 == 0 ? stranger : another, id, 1);
            topUp(consumer, id, 1);
        }
        same("pieces", escrow.sponsorships(id), 20);
        pass(100);
        close(id, 90);
        same("refund", credit(consumer), 340_020 - priceOf(q, 90));
        same("held for the sponsors", escrow.totals(address(usdc)).held, 20);
        checkBooks(address(usdc));
    }

    // refundSponsor

    /// @dev I13: the consumer's money is spent first, whenever it came, then the others', first come first spent.
    function test_refundSponsor_returnsWhatIsLeft_lastComeFirst() public {
        ILeaseEscrow.Quote memory q = newQuote();
        bytes32 id = open(q, uint128(priceOf(q, 100)));
        topUp(stranger, id, uint128(priceOf(q, 300) - priceOf(q, 100)));
        topUp(another, id, uint128(priceOf(q, 400) - priceOf(q, 300)));
        topUp(consumer, id, uint128(priceOf(q, 500) - priceOf(q, 400)));
        topUp(stranger, id, uint128(priceOf(q, 600) - priceOf(q, 500)));
        topUp(stranger, id, uint128(priceOf(q, 700) - priceOf(q, 600)));
        same("twice in a row is once", escrow.sponsorships(id), 3);
        piece(id, 0, stranger, priceOf(q, 300) - priceOf(q, 100), 0);
        piece(id, 1, another, priceOf(q, 400) - priceOf(q, 300), 0);
        piece(id, 2, stranger, priceOf(q, 700) - priceOf(q, 500), 0);
        piece(id, 3, address(0), 0, 0);

        pass(1000);
        settle(id, 100);
        // 200 seconds are the consumer's, 200 the first piece's, 50 of the second's 100 are spent.
        close(id, 450);
        same("the consumer's is spent", credit(consumer), 0);
        uint256 left = priceOf(q, 700) - priceOf(q, 450);
        same("held", escrow.totals(address(usdc)).held, left);
        same("told as refund", escrow.lease(id).refunded, left);
        piece(id, 0, stranger, priceOf(q, 300) - priceOf(q, 100), 0);
        uint256 ofAnother = left - (priceOf(q, 700) - priceOf(q, 500));
        piece(id, 1, another, priceOf(q, 400) - priceOf(q, 300), ofAnother);

        expect(abi.encodeWithSelector(ILeaseEscrow.NothingToRefund.selector, id, 0));
        escrow.refundSponsor(id, 0);
        vm.expectEmit();
        emit ILeaseEscrow.SponsorRefunded(id, another, ofAnother);
        vm.prank(address(0x123));
        same("amount", escrow.refundSponsor(id, 1), ofAnother);
        same("credit", credit(another), ofAnother);
        piece(id, 1, address(0), priceOf(q, 400) - priceOf(q, 300), 0);
        expect(abi.encodeWithSelector(ILeaseEscrow.NothingToRefund.selector, id, 1));
        escrow.refundSponsor(id, 1);
        escrow.refundSponsor(id, 2);
        same("credit of the last", credit(stranger), priceOf(q, 700) - priceOf(q, 500));
        expect(abi.encodeWithSelector(ILeaseEscrow.NothingToRefund.selector, id, 3));
        escrow.refundSponsor(id, 3);

        ILeaseEscrow.Totals memory t = escrow.totals(address(usdc));
        same("nothing held", t.held, 0);
        same("refunded", t.refunded, left);
        checkBooks(address(usdc));
        uint256 had = usdc.balanceOf(another);
        vm.prank(another);
        escrow.withdraw(address(usdc), another);
        same("withdrawn", usdc.balanceOf(another) - had, ofAnother);
    }

    function test_refundSponsor_whenTheConsumersCoveredAll_returnsAll() public {
        ILeaseEscrow.Quote memory q = newQuote();
        bytes32 id = open(q, 340_000);
        topUp(stranger, id, 5000);
        topUp(another, id, 7000);
        pass(10);
        close(id, 10);
        same("consumer", credit(consumer), 340_000 - priceOf(q, 10));
        same("first", escrow.refundSponsor(id, 0), 5000);
        same("second", escrow.refundSponsor(id, 1), 7000);
    }

    function test_refundSponsor_whenAllIsSpent_hasNothing() public {
        ILeaseEscrow.Quote memory q = newQuote();
        bytes32 id = open(q, uint128(priceOf(q, 60)));
        topUp(stranger, id, 1000);
        pass(3000);
        settle(id, 2000);
        close(id, 2000);
        same("all is claimed", escrow.lease(id).claimed, priceOf(q, 60) + 1000);
        expect(abi.encodeWithSelector(ILeaseEscrow.NothingToRefund.selector, id, 0));
        escrow.refundSponsor(id, 0);
        same("nothing held", escrow.totals(address(usdc)).held, 0);
    }

    function test_refundSponsor_ofNoOrAnOpenLease_reverts() public {
        expect(abi.encodeWithSelector(ILeaseEscrow.LeaseNotFound.selector, bytes32(uint256(9))));
        escrow.refundSponsor(bytes32(uint256(9)), 0);
        bytes32 id = open(newQuote(), 340_000);
        topUp(stranger, id, 1000);
        expect(abi.encodeWithSelector(ILeaseEscrow.LeaseIsOpen.selector, id));
        escrow.refundSponsor(id, 0);
    }

    /// @dev I13: whoever puts in what, and whatever is served: refunds are what was not claimed, and nobody gets more than it
    /// gave. The sums are made by walking along all deposits, as the contract never does.
    function test_refundSponsor_anyDeposits_anyService(
        uint16[12] calldata amounts,
        uint8[12] calldata who,
        uint32 served
    ) public {
        ILeaseEscrow.Quote memory q = newQuote();
        bytes32 id = open(q, 12_000);
        address[3] memory people = [consumer, stranger, another];
        uint256 own = 12_000;
        for (uint256 i = 0; i < 12; ++i) {
            uint128 amount = amounts[i] % 50_000 + 1;
            topUp(people[who[i] % 3], id, amount);
            if (who[i] % 3 == 0) own += amount;
        }
        pass(3600);
        close(id, served % 4000);
        uint256 unpaid = escrow.lease(id).claimed;
        uint256[3] memory expected;
        uint256 spent = unpaid < own ? unpaid : own;
        (expected[0], unpaid) = (own - spent, unpaid - spent);
        for (uint256 i = 0; i < 12; ++i) {
            if (who[i] % 3 == 0) continue;
            uint256 amount = amounts[i] % 50_000 + 1;
            spent = unpaid < amount ? unpaid : amount;
            expected[who[i] % 3] += amount - spent;
            unpaid -= spent;
        }
        for (uint256 i = escrow.sponsorships(id); i > 0; --i) {
            if (escrow.sponsorship(id, i - 1).refundable != 0) escrow.refundSponsor(id, i - 1);
        }
        for (uint256 i = 0; i < 3; ++i) {
            same("refund", credit(people[i]), expected[i]);
        }
        same("in all", expected[0] + expected[1] + expected[2], escrow.lease(id).refunded);
        same("nothing held", escrow.totals(address(usdc)).held, 0);
        checkBooks(address(usdc));
    }
}
