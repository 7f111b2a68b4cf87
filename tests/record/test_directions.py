import numpy as np
import pytest

from onecycle.record.directions import named_direction, stated_direction

LESS = """
    loss valid_loss my_loss val/loss error_rate top-1-error MSE rmse mae MeanAbsoluteError
    perplexity WordErrorRate wer cer FID dice_loss L1Loss log_loss cross_entropy kl_div
    BCEWithLogitsLoss
    hd95 negative_log_likelihood false_positive_rate
"""
MORE = """
    accuracy Accuracy val_acc lossless_accuracy top_5_accuracy top5_acc MulticlassAccuracy
    accuracy_0 f1 F1Score r2 R2Score mAP map_50 mAP@50 mIoU MeanIoU iou dice auroc
    BinaryAUROC recall@5
    ndcg@10 psnr bleu4 log_likelihood average_precision true_positive_rate
"""
UNKNOWN = """
    score lossless glossary terror topk top_k neg_mse neg_log_loss 1-error 1/mse -mse <lambda>
    error_free reduction_of_error mse_improvement inverse_loss accuracy_drop loss_auc error_accuracy
    PearsonCorrCoef inaccuracy one_minus_error time Scripted 100-accuracy
"""


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        *((name, "min") for name in LESS.split()),
        *((name, "max") for name in MORE.split()),
        *((name, None) for name in (*UNKNOWN.split(), "1 - error", "error * 2", "mean(loss)", "")),
    ],
)
def test_a_name_is_known_by_its_words_and_not_by_what_is_in_them(name, direction):
    assert named_direction(name) == direction


class Says:
    def __init__(self, higher_is_better):
        self.higher_is_better = higher_is_better


@pytest.mark.parametrize(
    ("value", "direction"),
    [(True, "max"), (False, "min"), (np.False_, "min"), (None, None), ("yes", None), (1, None)],
)
def test_a_metric_says_its_direction_by_true_or_false_alone(value, direction):
    assert stated_direction(Says(value)) == direction
