"""A Chinese and a Japanese set for searches by words: 500 passages each that share most of their words, 50 questions.

The facts are invented. A name is one of 10 beginnings with one of 5 ends, and everything told of it is drawn from short
lists, so that no word alone leads to the right passage. Every second question describes its passage without the name.
"""

from __future__ import annotations

from itertools import product
from random import Random
from typing import NamedTuple


class Kind(NamedTuple):
    """What passages of one kind are made of."""

    beginnings: str
    ends: str
    facts: dict[str, str]
    """Alternatives by name of the fact; `year` is drawn anew for each passage."""
    passages: tuple[str, ...]
    named: tuple[str, str]
    """Question that gives the name, and its answer."""
    described: tuple[str, str]
    """Question that does not, and its answer."""


class Asked(NamedTuple):
    """A question with its right passage."""

    text: str
    passage_id: str
    answer: str


class CjkSet(NamedTuple):
    """Passages by id, and what is asked about some."""

    passages: dict[str, str]
    questions: list[Asked]


CHINESE = (
    Kind(
        "青石 云溪 临河 白鹭 松岭 南浦 望江 石塘 柳泉 金沙",
        "镇 村 古城 渔港 县",
        {
            "craft": "竹编 制陶 刺绣 木雕 造纸 酿酒 剪纸 织锦",
            "river": "沅水 汉江 闽江 赣江 嘉陵江 乌江",
            "fair": "灯会 庙会 龙舟赛 歌会 花市",
        },
        (
            "{name}位于{river}上游，居民大多以{craft}为生。每年{month}月这里都要举办{fair}，附近的人会乘船赶来。",
            "沿着{river}往下走半天就到了{name}。那里的{craft}手艺传了十几代，{month}月的{fair}也很热闹。",
            "{year}年修通公路以后，{name}的{craft}卖到了外省。这座依着{river}的地方以{month}月的{fair}闻名。",
        ),
        ("{name}的居民靠什么手艺为生？", "{craft}"),
        ("哪个地方靠着{river}，会{craft}，还在{month}月办{fair}？", "{name}"),
    ),
    Kind(
        "林 陈 周 吴 郑 韩 沈 许 曹 谢",
        "文远 秋白 志明 若兰 子衿",
        {
            "job": "天文学家 建筑师 小提琴家 植物学家 地质学家 翻译家",
            "city": "成都 杭州 西安 昆明 青岛 长沙",
            "work": "星图 图书馆 协奏曲 图鉴 矿物志 诗集",
        },
        (
            "{job}{name}{year}年出生于{city}，早年在船厂当学徒。晚年完成的《{city}{work}》是最有名的作品。",
            "{name}是一位{job}，{year}年生在{city}一个教师家庭。人们最常提起的是那部{work}。",
            "生于{year}年的{name}在{city}长大，后来成为{job}，并把一生的笔记整理成{work}。",
        ),
        ("{name}是哪一年出生的？", "{year}年"),
        ("{year}年生于{city}的那位{job}叫什么名字？", "{name}"),
    ),
    Kind(
        "酸菜 豆豉 蜜汁 香葱 辣子 清蒸 红烧 糖醋 蒜蓉 椒盐",
        "鱼片 排骨 豆腐 鸡丁 茄子",
        {
            "spice": "花椒 八角 陈皮 生姜 桂皮 孜然",
            "pot": "砂锅 铁锅 蒸笼 陶罐",
            "side": "米饭 馒头 面条 烙饼",
        },
        (
            "做{name}要先把{spice}放进{pot}里炒香，再用小火煮{minutes}分钟。当地人喜欢配着{side}吃。",
            "{name}的味道来自{spice}。厨师用{pot}慢慢煮{minutes}分钟，出锅后和{side}一起端上桌。",
            "这家饭馆的{name}配{side}，用{pot}煮{minutes}分钟，临出锅前撒一把{spice}。",
        ),
        ("{name}里放的是什么香料？", "{spice}"),
        ("哪道菜要用{pot}煮{minutes}分钟，加{spice}，配{side}吃？", "{name}"),
    ),
    Kind(
        "海鸥 长风 晨星 铁牛 飞鱼 蓝鲸 雪豹 金雕 山鹰 银河",
        "收割机 无人机 抽水机 起重机 打印机",
        {
            "maker": "东宁机械厂 华岳公司 江北研究所 南洋工厂 天工集团",
            "power": "柴油 锂电池 太阳能 氢气 交流电",
            "use": "农场 码头 矿山 学校 实验室",
        },
        (
            "{name}由{maker}于{year}年推出，使用{power}驱动，重{weight}公斤，主要卖给{use}。",
            "{maker}在{year}年生产了第一台{name}。它靠{power}工作，重量只有{weight}公斤，许多{use}都买了一台。",
            "在{use}里常见的{name}重{weight}公斤，以{power}为动力，是{maker}{year}年的产品。",
        ),
        ("{name}是哪家工厂生产的？", "{maker}"),
        ("{maker}{year}年推出的，用{power}驱动、重{weight}公斤的机器是什么？", "{name}"),
    ),
    Kind(
        "春天的 最后的 遥远的 无声的 北方的 祖父的 迷路的 夏夜的 雨中的 海边的",
        "灯塔 列车 花园 信使 钟楼",
        {
            "writer": "顾南星 叶知秋 白小河 罗一鸣 苏晚晴 方大山",
            "hero": "邮递员 守林人 女教师 修表匠 船长 孤儿",
            "theme": "战争 饥荒 友谊 移民 记忆 洪水",
        },
        (
            "《{name}》是{writer}{year}年发表的长篇小说，写一个{hero}在{theme}年代里的故事。",
            "{year}年，{writer}的《{name}》出版。书里的{hero}经历了{theme}，最后回到了故乡。",
            "读者最喜欢{writer}的《{name}》：{hero}的一生围绕着{theme}展开。此书{year}年初版。",
        ),
        ("小说《{name}》的作者是谁？", "{writer}"),
        ("{writer}{year}年写{hero}和{theme}的小说叫什么？", "{name}"),
    ),
)

JAPANESE = (
    Kind(
        "青葉 白浜 松原 霧島 金沢 若宮 石川 桜井 竹田 鶴見",
        "町 村 温泉 港 宿場",
        {
            "craft": "陶芸 漆器 和紙づくり 染物 木彫り 酒造り 竹細工",
            "river": "千曲川 四万十川 球磨川 最上川 天竜川",
            "fair": "花火大会 雪まつり 朝市 盆踊り 流鏑馬",
        },
        (
            "{name}は{river}の上流にあり、住民の多くは{craft}で暮らしています。毎年{month}月には{fair}が開かれます。",
            "{river}に沿って半日歩くと{name}に着く。{craft}の技は十代も受け継がれ、{month}月の{fair}もにぎやかだ。",
            "{year}年に鉄道が通ってから、{name}の{craft}は都会でも売れるようになった。{month}月の{fair}と{river}の眺めで知られる。",
        ),
        ("{name}の人々は何で暮らしていますか。", "{craft}"),
        ("{river}の近くで{craft}が盛んで、{month}月に{fair}があるのはどこですか。", "{name}"),
    ),
    Kind(
        "高橋 渡辺 中村 小林 加藤 吉田 山口 松本 井上 木村",
        "春樹 千代 健一 美咲 文雄",
        {
            "job": "天文学者 建築家 バイオリニスト 植物学者 地質学者 翻訳家",
            "city": "札幌 仙台 京都 広島 長崎 金沢",
            "work": "星図 図書館 協奏曲 図鑑 鉱物誌 詩集",
        },
        (
            "{job}の{name}は{year}年に{city}で生まれ、若いころは造船所で働いた。代表作は晩年の{work}である。",
            "{name}は{city}の教師の家に生まれた{job}で、生年は{year}年。いちばん有名なのは{work}だ。",
            "{year}年生まれの{name}は{city}で育ち、のちに{job}となって、一生のノートを{work}にまとめた。",
        ),
        ("{name}は何年に生まれましたか。", "{year}年"),
        ("{year}年に{city}で生まれた{job}の名前は何ですか。", "{name}"),
    ),
    Kind(
        "鶏肉の 豆腐の なすの さばの 大根の 牛肉の かぼちゃの 鮭の きのこの いわしの",
        "味噌煮 照り焼き 天ぷら カレー グラタン",
        {
            "spice": "生姜 山椒 ゆず にんにく 唐辛子 わさび",
            "pot": "土鍋 フライパン 蒸し器 オーブン",
            "side": "ご飯 うどん パン そば",
        },
        (
            "{name}を作るには、まず{spice}を{pot}で炒め、弱火で{minutes}分煮ます。{side}と一緒に食べるのが普通です。",
            "{name}の風味は{spice}によるものだ。料理人は{pot}で{minutes}分かけて仕上げ、{side}を添えて出す。",
            "この店の{name}は{side}つきで、{pot}で{minutes}分加熱し、最後に{spice}を散らす。",
        ),
        ("{name}にはどんな香味料を使いますか。", "{spice}"),
        ("{pot}で{minutes}分調理し、{spice}を使って{side}に添える料理は何ですか。", "{name}"),
    ),
    Kind(
        "かもめ はやぶさ あかつき ひまわり つばめ くじら ゆきひょう いぬわし しらさぎ ほたる",
        "号 コンバイン ドローン ポンプ プリンター",
        {
            "maker": "東和機械 北山製作所 ミナト工業 大空研究所 サクラ電機",
            "power": "ディーゼル リチウム電池 太陽光 水素 交流電源",
            "use": "農場 港 鉱山 学校 実験室",
        },
        (
            "{name}は{maker}が{year}年に発売した機械で、{power}で動き、重さは{weight}キロ、おもに{use}で使われる。",
            "{maker}は{year}年に最初の{name}を作りました。{power}を使い、{weight}キロと軽いので、多くの{use}が導入しました。",
            "{use}でよく見かける{name}は重さ{weight}キロ、動力は{power}で、{maker}の{year}年の製品だ。",
        ),
        ("{name}を作ったメーカーはどこですか。", "{maker}"),
        ("{maker}が{year}年に発売した、{power}で動く{weight}キロの機械は何ですか。", "{name}"),
    ),
    Kind(
        "春の 最後の 遠い 静かな 北の 祖父の 迷子の 夏の夜の 雨の 海辺の",
        "灯台 列車 庭 手紙 時計塔",
        {
            "writer": "水野あかり 森田透 岡本しずく 藤井遥 西村岳 三浦るり",
            "hero": "郵便配達員 森番 女教師 時計職人 船長 孤児",
            "theme": "戦争 飢饉 友情 移民 記憶 洪水",
        },
        (
            "『{name}』は{writer}が{year}年に発表した長編小説で、{theme}の時代を生きる{hero}の物語である。",
            "{year}年、{writer}の『{name}』が出版された。主人公の{hero}は{theme}を経て故郷に帰る。",
            "{writer}の『{name}』は読者に愛されている。{hero}の一生を{theme}を中心に描き、初版は{year}年。",
        ),
        ("小説『{name}』の作者は誰ですか。", "{writer}"),
        ("{writer}が{year}年に書いた、{hero}と{theme}の小説は何ですか。", "{name}"),
    ),
)


def cjk_set(kinds: tuple[Kind, ...], seed: int) -> CjkSet:
    """The passages of all kinds; one of each ten is asked about."""
    random = Random(seed)
    asked = {10 * block + random.randrange(10) for block in range(50)}
    passages: dict[str, str] = {}
    questions = []
    for kind in kinds:
        beginnings = kind.beginnings.split()
        for beginning, end in product(beginnings, kind.ends.split()):
            # The second name of a pair holds the first one, so that either is found among words of the other.
            before = random.choice([other for other in beginnings if other != beginning])
            for name in (beginning + end, before + beginning + end):
                facts = {fact: random.choice(words.split()) for fact, words in kind.facts.items()}
                numbers = {
                    "year": random.randint(1850, 2020),
                    "month": random.randint(1, 12),
                    "minutes": random.choice(range(5, 95, 5)),
                    "weight": random.randint(3, 900),
                }
                told = {"name": name, **facts, **numbers}
                passage_id = f"p{len(passages)}"
                if len(passages) in asked:
                    question, answer = kind.described if len(questions) % 2 else kind.named
                    questions.append(Asked(question.format(**told), passage_id, answer.format(**told)))
                passages[passage_id] = random.choice(kind.passages).format(**told)
    return CjkSet(passages, questions)
